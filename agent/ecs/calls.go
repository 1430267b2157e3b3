package ecs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/smithy-go"
)

// Tags lists the tags of a task or container instance.
func (cl *Client) Tags(ctx context.Context, arn string) (map[string]string, error) {
	out, err := cl.api.ListTagsForResource(ctx, &ecs.ListTagsForResourceInput{ResourceArn: &arn})
	if err != nil {
		return nil, err
	}
	tags := make(map[string]string, len(out.Tags))
	for _, t := range out.Tags {
		tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return tags, nil
}

// Drain has the cluster place no more tasks on an instance, and move those of services.
func (cl *Client) Drain(ctx context.Context, instanceARN string) error {
	out, err := cl.api.UpdateContainerInstancesState(ctx, &ecs.UpdateContainerInstancesStateInput{
		Cluster: aws.String(cl.Cluster()), ContainerInstances: []string{instanceARN}, Status: types.ContainerInstanceStatusDraining,
	})
	if err == nil && len(out.Failures) > 0 {
		err = fmt.Errorf("%s %s", aws.ToString(out.Failures[0].Reason), aws.ToString(out.Failures[0].Detail))
	}
	if err != nil {
		return fmt.Errorf("drain this instance: %w", brief(err))
	}
	return nil
}

// Protection is the protection of a task, or the cluster's failure to say.
type Protection struct {
	TaskARN   string
	Protected bool
	Expires   *time.Time

	// Failed is set with a failure, which has no protection.
	Failed         bool
	Reason, Detail string
}

// TaskProtection reads the protection of a task with the credentials of its role, or with
// enabled changes it, for so many minutes (nil: the cluster's default).
func (cl *Client) TaskProtection(ctx context.Context, role aws.CredentialsProvider, taskARN, clusterARN string, enabled *bool, minutes *int32) (Protection, error) {
	as := func(o *ecs.Options) { o.Credentials = role }
	p := Protection{TaskARN: taskARN}
	if enabled == nil {
		out, err := cl.api.GetTaskProtection(ctx, &ecs.GetTaskProtectionInput{Cluster: &clusterARN, Tasks: []string{taskARN}}, as)
		if err != nil {
			return p, err
		}
		for _, f := range out.Failures {
			return Protection{TaskARN: aws.ToString(f.Arn), Failed: true, Reason: aws.ToString(f.Reason), Detail: aws.ToString(f.Detail)}, nil
		}
		for _, t := range out.ProtectedTasks {
			return Protection{TaskARN: aws.ToString(t.TaskArn), Protected: t.ProtectionEnabled, Expires: t.ExpirationDate}, nil
		}
		return p, errNoProtection
	}
	out, err := cl.api.UpdateTaskProtection(ctx, &ecs.UpdateTaskProtectionInput{
		Cluster: &clusterARN, Tasks: []string{taskARN}, ProtectionEnabled: *enabled, ExpiresInMinutes: minutes,
	}, as)
	if err != nil {
		return p, err
	}
	for _, f := range out.Failures {
		return Protection{TaskARN: aws.ToString(f.Arn), Failed: true, Reason: aws.ToString(f.Reason), Detail: aws.ToString(f.Detail)}, nil
	}
	for _, t := range out.ProtectedTasks {
		return Protection{TaskARN: aws.ToString(t.TaskArn), Protected: t.ProtectionEnabled, Expires: t.ExpirationDate}, nil
	}
	return p, errNoProtection
}

var errNoProtection = errors.New("the cluster's answer names no task")

// Answered takes an error of the ECS API apart: code, message, request id and HTTP
// status. It is false if there was no answer.
func Answered(err error) (code, message, requestID string, status int, ok bool) {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return "", "", "", 0, false
	}
	status = http.StatusInternalServerError
	var r *awshttp.ResponseError
	if errors.As(err, &r) {
		status, requestID = r.HTTPStatusCode(), r.ServiceRequestID()
	}
	return api.ErrorCode(), api.ErrorMessage(), requestID, status, true
}
