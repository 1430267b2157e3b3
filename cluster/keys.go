package cluster

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"berth.dev/berth/cluster/store"
)

const (
	// rootKeyBytes is the length of the root key.
	rootKeyBytes = 32
	// secretChars is the length of a secret access key, as AWS has it.
	secretChars = 40
	// operatorMeta is the name of the record of the operator's key id.
	operatorMeta = "operator-key"
	// rootMeta is the name of the record that tells the root key from others.
	rootMeta = "root-key"
)

// Key is an access key. It prints without its secret.
type Key struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
}

func (k Key) String() string { return k.AccessKeyID + " (secret not shown)" }

// GoString keeps the secret out of %#v too.
func (k Key) GoString() string { return "cluster.Key{" + k.String() + "}" }

// keyring derives secrets: the store has the ids only, so that it holds no
// credential.
type keyring struct {
	root  []byte
	path  string
	fresh bool // made now
}

// openKeyring reads the root key of a directory, or makes one.
func openKeyring(dir string) (*keyring, error) {
	path := filepath.Join(dir, "root.key")
	root, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		root = make([]byte, rootKeyBytes)
		if _, err := rand.Read(root); err != nil {
			return nil, fmt.Errorf("make root key: %w", err)
		}
		return &keyring{root, path, true}, writeFile(path, root, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("read root key: %w", err)
	}
	if len(root) != rootKeyBytes {
		return nil, fmt.Errorf("%s has %d bytes instead of %d; restore it from a backup, or remove it to have all keys made anew", path, len(root), rootKeyBytes)
	}
	return &keyring{root, path, false}, nil
}

// pin refuses to serve records whose secrets come from another root key: all processes
// on one etcd need the same.
func (k *keyring) pin(ctx context.Context, s *store.Store) error {
	h := hmac.New(sha256.New, k.root)
	h.Write([]byte("fingerprint"))
	mine := base64.RawStdEncoding.EncodeToString(h.Sum(nil)[:12])
	err := s.Update(ctx, func(tx *store.Tx) error {
		v, ok := store.Get(tx, store.Meta, rootMeta)
		if !ok {
			store.Put(tx, store.Meta, rootMeta, &store.Value{Text: mine})
			return nil
		}
		if v.Text != mine {
			return fmt.Errorf("%s is not the root key of this cluster; copy that file, and the folder tls if there is one, from the directory of a process that serves it", k.path)
		}
		return nil
	})
	if err != nil && k.fresh {
		err = errors.Join(err, os.Remove(k.path))
	}
	return err
}

func (k *keyring) secret(id string) string {
	h := hmac.New(sha256.New, k.root)
	h.Write([]byte("access key " + id))
	return base64.RawStdEncoding.EncodeToString(h.Sum(nil))[:secretChars]
}

func (k *keyring) key(id string) Key { return Key{id, k.secret(id)} }

// newKeyID makes an access key id in AWS's form.
func newKeyID() (string, error) {
	var b [10]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make access key id: %w", err)
	}
	return "AKIA" + base32.StdEncoding.EncodeToString(b[:]), nil
}

// issue records a new key.
func (k *keyring) issue(ctx context.Context, s *store.Store, kind store.KeyKind) (Key, error) {
	id, err := newKeyID()
	if err != nil {
		return Key{}, err
	}
	err = s.Update(ctx, func(tx *store.Tx) error {
		store.Put(tx, store.Keys, id, &store.AccessKey{ID: id, Kind: kind, CreatedAt: time.Now().UTC()})
		return nil
	})
	if err != nil {
		return Key{}, fmt.Errorf("record access key: %w", err)
	}
	return k.key(id), nil
}

// operator returns the operator's key, which is made on first use.
func (k *keyring) operator(ctx context.Context, s *store.Store) (Key, error) {
	fresh, err := newKeyID()
	if err != nil {
		return Key{}, err
	}
	var id string
	err = s.Update(ctx, func(tx *store.Tx) error {
		if v, ok := store.Get(tx, store.Meta, operatorMeta); ok {
			id = v.Text
			return nil
		}
		id = fresh
		store.Put(tx, store.Meta, operatorMeta, &store.Value{Text: id})
		store.Put(tx, store.Keys, id, &store.AccessKey{ID: id, Kind: store.KeyOperator, CreatedAt: time.Now().UTC()})
		return nil
	})
	if err != nil {
		return Key{}, fmt.Errorf("record operator key: %w", err)
	}
	return k.key(id), nil
}

// operatorFile is operator.json.
type operatorFile struct {
	Key
	Region   string `json:"region"`
	Endpoint string `json:"endpoint"`
	Account  string `json:"account"`
	// CA is the path of the certificate to trust; absent without TLS.
	CA string `json:"ca,omitempty"`
	// Fingerprint is the SHA-256 of that certificate.
	Fingerprint string `json:"fingerprint,omitempty"`
}

func (f operatorFile) write(dir string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encode operator.json: %w", err)
	}
	return writeFile(filepath.Join(dir, "operator.json"), append(b, '\n'), 0o600)
}

// writeFile replaces a file so that it has the old content or the new, also
// after a crash.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
