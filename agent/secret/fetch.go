package secret

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/task"
)

// batch is how many parameters one request asks for (SSM API reference, GetParameters).
const batch = 10

// maxObject bounds an environment file in bytes.
const maxObject = 1 << 20

// source is one value to be fetched: a parameter, or one version of a secret.
type source struct {
	provider, region, id string
	stage, version       string // of Secrets Manager
}

// fetch is the fetching for one task.
type fetch struct {
	ctx   context.Context
	roles Roles
	task  *task.Task

	mu      sync.Mutex
	values  map[source]string
	objects map[string][]byte // by ARN
	errs    map[string]error  // by what failed, so that their order is always the same
}

func newFetch(ctx context.Context, r Roles, t *task.Task) *fetch {
	return &fetch{ctx: ctx, roles: r, task: t, values: map[source]string{}, objects: map[string][]byte{}, errs: map[string]error{}}
}

func (f *fetch) fail(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[what] = err
}

// failed joins what went wrong with "; ".
func (f *fetch) failed() error {
	if len(f.errs) == 0 {
		return nil
	}
	var texts []string
	for _, what := range slices.Sorted(maps.Keys(f.errs)) {
		if text := f.errs[what].Error(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return errors.New("unable to pull secrets: " + strings.Join(texts, "; "))
}

// run fetches everything, several things at a time.
func (f *fetch) run() {
	parameters := map[string][]string{} // names by region
	secrets := map[source]bool{}
	files := map[string]bool{}
	for i := range f.task.Containers {
		c := &f.task.Containers[i]
		for _, ref := range c.Secrets {
			src, _, err := sourceOf(ref)
			switch {
			case err != nil:
				f.fail(ref.From, err)
			case src.provider == task.ProviderSSM:
				if !slices.Contains(parameters[src.region], src.id) {
					parameters[src.region] = append(parameters[src.region], src.id)
				}
			default:
				secrets[src] = true
			}
		}
		for _, a := range c.EnvFiles {
			files[a] = true
		}
	}
	if len(f.errs) > 0 {
		return // nothing is asked for a task that cannot run anyway
	}
	var g errgroup.Group
	g.SetLimit(maxTogether)
	for region, names := range parameters {
		slices.Sort(names)
		for names := range slices.Chunk(names, batch) {
			g.Go(func() error { f.parameters(region, names); return nil })
		}
	}
	for src := range secrets {
		g.Go(func() error { f.secret(src); return nil })
	}
	for a := range files {
		g.Go(func() error { f.file(a); return nil })
	}
	g.Wait() //nolint:errcheck // failures are collected by what failed
}

// parameters asks for up to ten parameters at once.
func (f *fetch) parameters(region string, names []string) {
	key := "ssm " + region + " " + names[0]
	what := "fetching secret data from SSM Parameter Store in " + region
	c, err := f.roles.AsTask(f.ctx, f.task, region)
	if err != nil {
		f.fail(key, fmt.Errorf("ssm secret resource: %w", err))
		return
	}
	out, err := ssm.NewFromConfig(c).GetParameters(f.ctx, &ssm.GetParametersInput{Names: names, WithDecryption: aws.Bool(true)})
	if err != nil {
		f.fail(key, fmt.Errorf("%s: %w", what, roles.Explain(err, "ssm:GetParameters")))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var missing []string
	for _, name := range names {
		found := false
		for _, p := range out.Parameters {
			if sameParameter(name, aws.ToString(p.Name), aws.ToString(p.ARN)) {
				f.values[source{provider: task.ProviderSSM, region: region, id: name}] = aws.ToString(p.Value)
				found = true
			}
		}
		if !found {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		f.errs[key] = fmt.Errorf("%s: invalid parameters: %s", what, strings.Join(missing, ","))
	}
}

// sameParameter reports whether an answer is for what was asked. The service gives the
// name of a parameter as it was asked for, or without the ARN around it.
func sameParameter(asked, name, itsARN string) bool {
	if asked == name || asked == itsARN {
		return true
	}
	a, err := arn.Parse(asked)
	return err == nil && strings.TrimPrefix(strings.TrimPrefix(a.Resource, "parameter"), "/") == strings.TrimPrefix(name, "/")
}

// secret asks for one version of one secret.
func (f *fetch) secret(src source) {
	key := "asm " + src.region + " " + src.id + src.stage + src.version
	what := fmt.Sprintf("fetching secret data from AWS Secrets Manager in region %s: secret %s", src.region, src.id)
	c, err := f.roles.AsTask(f.ctx, f.task, src.region)
	if err != nil {
		f.fail(key, fmt.Errorf("asm secret resource: %w", err))
		return
	}
	v, err := secretValue(f.ctx, c, src)
	if err != nil {
		f.fail(key, fmt.Errorf("%s: %w", what, err))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[src] = v
}

// Value fetches the current text of a secret by ARN or name.
func Value(ctx context.Context, c aws.Config, id string) (task.Secret, error) {
	v, err := secretValue(ctx, c, source{id: id})
	return task.NewSecret(v), err
}

func secretValue(ctx context.Context, c aws.Config, src source) (string, error) {
	in := &secretsmanager.GetSecretValueInput{SecretId: &src.id}
	if src.stage != "" {
		in.VersionStage = &src.stage
	}
	if src.version != "" {
		in.VersionId = &src.version
	}
	out, err := secretsmanager.NewFromConfig(c).GetSecretValue(ctx, in)
	if err != nil {
		return "", roles.Explain(err, "secretsmanager:GetSecretValue")
	}
	if out.SecretString == nil {
		return "", errors.New("the secret is binary; store its value as text")
	}
	return *out.SecretString, nil
}

// file reads one environment file.
func (f *fetch) file(objectARN string) {
	data, err := f.object(objectARN)
	if err != nil {
		f.fail("s3 "+objectARN, fmt.Errorf("unable to download env file %s: %w", objectARN, err))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[objectARN] = data
}

func (f *fetch) object(objectARN string) ([]byte, error) {
	a, err := arn.Parse(objectARN)
	bucket, key, ok := strings.Cut(a.Resource, "/")
	if err != nil || a.Service != "s3" || !ok || bucket == "" || key == "" {
		return nil, errors.New("not the ARN of an S3 object, such as arn:aws:s3:::bucket/path/app.env")
	}
	return Object(f.ctx, f.roles, f.task, bucket, key)
}

// Object reads an object of at most 1 MiB in the name of a task, in whichever region its
// bucket is.
func Object(ctx context.Context, r Roles, t *task.Task, bucket, key string) ([]byte, error) {
	c, err := r.AsTask(ctx, t, "")
	if err != nil {
		return nil, err
	}
	options := func(o *s3.Options) {
		o.UsePathStyle = roles.Overridden("S3")
		o.DisableLogOutputChecksumValidationSkipped = true
	}
	where, err := s3.NewFromConfig(c, options).GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: &bucket})
	if err != nil {
		return nil, fmt.Errorf("location of bucket %s: %w", bucket, roles.Explain(err, "s3:GetBucketLocation"))
	}
	// S3 API reference, GetBucketLocation: nothing stands for the oldest region, EU for
	// the oldest one in Europe.
	switch region := string(where.LocationConstraint); region {
	case "":
		c.Region = "us-east-1"
	case "EU":
		c.Region = "eu-west-1"
	default:
		c.Region = region
	}
	out, err := s3.NewFromConfig(c, options).GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, roles.Explain(err, "s3:GetObject")
	}
	defer out.Body.Close()
	data, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxObject {
		return nil, fmt.Errorf("it has more than %d bytes", maxObject)
	}
	return data, nil
}

// errARN has the words of the protocol ("Secrets").
var errARN = errors.New("an invalid ARN format for the AWS Secrets Manager secret was specified. Specify a valid ARN and try again.") //nolint:staticcheck // the protocol's text

// sourceOf says where the value of a reference is, and which key of a JSON object it is.
func sourceOf(ref task.SecretRef) (src source, key string, err error) {
	src = source{provider: ref.Provider, region: ref.Region, id: ref.From}
	switch ref.Provider {
	case task.ProviderSSM:
		return src, "", nil
	case task.ProviderSecretsManager:
	default:
		return src, "", fmt.Errorf("secret %s: unknown provider %q", ref.Name, ref.Provider)
	}
	// arn:partition:secretsmanager:region:account:secret:id[:jsonKey:versionStage:versionId]
	parts := strings.Split(ref.From, ":")
	if (len(parts) != 7 && len(parts) != 10) || parts[0] != "arn" || parts[2] != "secretsmanager" || parts[5] != "secret" || parts[6] == "" {
		return src, "", errARN
	}
	src.id = strings.Join(parts[:7], ":")
	if len(parts) == 10 {
		key, src.stage, src.version = parts[7], parts[8], parts[9]
	}
	return src, key, nil
}

// value is what a reference stands for, once everything is fetched.
func (f *fetch) value(ref task.SecretRef) (task.Secret, error) {
	src, key, err := sourceOf(ref)
	if err != nil {
		return task.Secret{}, err
	}
	v, ok := f.values[src]
	if !ok {
		return task.Secret{}, fmt.Errorf("secret %s was not fetched", ref.Name)
	}
	if key == "" {
		return task.NewSecret(v), nil
	}
	member, err := memberOf(v, key)
	if err != nil {
		return task.Secret{}, fmt.Errorf("secret %s: %w", ref.Name, err)
	}
	return task.NewSecret(member), nil
}

// memberOf is one member of a JSON object: the text of a string, and the JSON of
// anything else. Its errors hold nothing of the object.
func memberOf(text, key string) (string, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &members); err != nil {
		return "", fmt.Errorf("retrieved secret from Secrets Manager is no JSON object, of which json key %s could be taken", key)
	}
	raw, ok := members[key]
	if !ok {
		return "", fmt.Errorf("retrieved secret from Secrets Manager did not contain json key %s", key)
	}
	var s string
	if json.Unmarshal(raw, &s) == nil && len(raw) > 0 && raw[0] == '"' {
		return s, nil
	}
	return string(raw), nil
}
