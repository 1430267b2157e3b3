package daemon

import (
	"log/slog"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// credentialKeeper hands the credentials of a message to the store that holds them in
// memory.
type credentialKeeper struct {
	store *creds.Store
	log   *slog.Logger
}

// Set keeps credentials; what cannot be kept is logged without its content.
func (k credentialKeeper) Set(taskARN, roleType string, c acs.IAMRoleCredentials) {
	err := k.store.Set(creds.Credentials{
		ID: c.CredentialsID, TaskARN: taskARN, Role: creds.Role(roleType), RoleARN: c.RoleARN,
		AccessKeyID: task.NewSecret(c.AccessKeyID), SecretAccessKey: task.NewSecret(c.SecretAccessKey),
		SessionToken: task.NewSecret(c.SessionToken), Expiration: c.Expiration,
	})
	if err != nil {
		k.log.Warn("credentials of a task are refused", "task", taskARN, "role", roleType, "err", err)
	}
}
