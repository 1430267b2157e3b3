package join

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"berth.dev/berth/wire/join"
)

const (
	// keyCheck is how often the key's age is looked at.
	keyCheck = time.Hour
	// keySettles is how long the old key is kept beside the new one, so that nobody still
	// signs with it: the key file is read again every minute.
	keySettles = 2 * time.Minute
)

// Keys renews the key of a member.
type Keys struct {
	Place
	// Every is the age at which the key is replaced; 0 means never.
	Every  time.Duration
	Region string
	Client *http.Client
	// Credentials are those of the key file; Changed is called after the file was written.
	Credentials aws.CredentialsProvider
	Changed     func()
	Log         *slog.Logger
}

// Run renews the key until ctx ends. A host that no token made a member keeps its key.
func (k *Keys) Run(ctx context.Context) {
	wait := keySettles
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = keyCheck
		r, err := k.ReadRecord()
		switch {
		case err != nil || r == nil:
		case r.Unconfirmed:
			err = k.confirm(ctx, *r)
		case k.Every > 0 && time.Since(r.KeyAt) >= k.Every:
			if err = k.Rotate(ctx); err == nil {
				wait = keySettles
			}
		}
		if err != nil && ctx.Err() == nil {
			k.Log.Warn("the agent's key is not renewed; the old one stays in use", "err", err)
		}
	}
}

// Rotate has the cluster make a new key and writes it. The old one is good until the new
// one is confirmed, which Run does.
func (k *Keys) Rotate(ctx context.Context) error {
	r, err := k.ReadRecord()
	if err != nil {
		return err
	}
	if r == nil {
		return errors.New("this host was not made a member by a token, so the cluster does not renew its key")
	}
	var next struct{ AccessKeyID, SecretAccessKey string }
	if err := k.call(ctx, r.Endpoint+join.RotatePath, &next); err != nil {
		return fmt.Errorf("ask for a new key: %w", err)
	}
	if next.AccessKeyID == "" || next.SecretAccessKey == "" {
		return errors.New("the cluster's answer holds no key")
	}
	// The record first: a key that is taken for unconfirmed is only confirmed once more.
	if err := k.writeRecord(Record{Endpoint: r.Endpoint, KeyAt: time.Now().UTC(), Unconfirmed: true}); err != nil {
		return err
	}
	if err := k.writeKey(next.AccessKeyID, next.SecretAccessKey); err != nil {
		return err
	}
	k.Changed()
	k.Log.Info("the agent has a new key", "key", next.AccessKeyID)
	return nil
}

// confirm ends every other key of this host.
func (k *Keys) confirm(ctx context.Context, r Record) error {
	if err := k.call(ctx, r.Endpoint+join.ConfirmPath, &struct{}{}); err != nil {
		return fmt.Errorf("confirm the new key: %w", err)
	}
	r.Unconfirmed = false
	return k.writeRecord(r)
}

func (k *Keys) call(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, http.NoBody)
	if err != nil {
		return err
	}
	creds, err := k.Credentials.Retrieve(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(nil)
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "ecs", k.Region, time.Now()); err != nil {
		return err
	}
	return exchange(k.Client, req, into)
}
