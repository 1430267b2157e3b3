package cluster

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"berth.dev/berth/cluster/iam"
)

// RolesAtAWS returns a function for Config.Foreign that takes roles at AWS with the
// identity that the default chain of the AWS SDK finds for this program. What keys a role
// gives, and for how long, AWS decides (one hour by default, 12 at most).
func RolesAtAWS(ctx context.Context, region string) (func(ctx context.Context, roleARN, session string) (iam.Keys, error), error) {
	c, err := config.LoadDefaultConfig(ctx, config.WithDefaultRegion(region))
	if err != nil {
		return nil, fmt.Errorf("identity at AWS: %w", err)
	}
	client := sts.NewFromConfig(c)
	return func(ctx context.Context, roleARN, session string) (iam.Keys, error) {
		out, err := client.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: &roleARN, RoleSessionName: &session})
		if err != nil {
			return iam.Keys{}, fmt.Errorf("take role %s at AWS: %w", roleARN, err)
		}
		k := out.Credentials
		if k == nil || k.Expiration == nil {
			return iam.Keys{}, fmt.Errorf("take role %s at AWS: the answer has no credentials", roleARN)
		}
		return iam.Keys{
			AccessKeyID: aws.ToString(k.AccessKeyId), SecretAccessKey: aws.ToString(k.SecretAccessKey),
			SessionToken: aws.ToString(k.SessionToken), Expires: *k.Expiration,
		}, nil
	}, nil
}
