package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// bootstrapFiles are what all servers of a cluster share, below server/. They lie in the datastore too, encrypted with the
// server token: a snapshot and its token are enough to bring the cluster back on another host, and without the token the
// snapshot is worthless.
var bootstrapFiles = []string{
	"tls/server-ca.crt", "tls/server-ca.key", "tls/client-ca.crt", "tls/client-ca.key",
	"tls/request-header-ca.crt", "tls/request-header-ca.key", "tls/service.key",
	"tls/etcd/server-ca.crt", "tls/etcd/server-ca.key", "tls/etcd/peer-ca.crt", "tls/etcd/peer-ca.key",
}

// changingFiles are shared too, but one server may change them for all: the datastore's are right, whatever lies on disk.
var changingFiles = []string{encryptionConfig, encryptionState}

const bootstrapPrefix = "/bootstrap/"

var errOtherToken = errors.New("bootstrap data already found and encrypted with different token")

func (d dirs) readBootstrap() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range bootstrapFiles {
		raw, err := os.ReadFile(d.server(name))
		if err != nil {
			return nil, err
		}
		out[name] = raw
	}
	for _, name := range changingFiles {
		raw, err := os.ReadFile(d.server(name))
		if err == nil {
			out[name] = raw
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return out, nil
}

// writeBootstrap refuses to put one cluster's authorities over another's.
func (d dirs) writeBootstrap(files map[string][]byte) error {
	for _, name := range bootstrapFiles {
		raw, ok := files[name]
		if !ok {
			return fmt.Errorf("the bootstrap data lack %s", name)
		}
		old, err := os.ReadFile(d.server(name))
		if err == nil && string(old) != string(raw) {
			return fmt.Errorf("%s: newer than datastore and could cause a cluster outage. Remove the file(s) from disk and restart", d.server(name))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, name := range append(slices.Clone(bootstrapFiles), changingFiles...) {
		if raw, ok := files[name]; ok {
			if err := writeFile(d.server(name), raw, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

func bootstrapKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return bootstrapPrefix + hex.EncodeToString(sum[:])[:12]
}

func bootstrapCipher(token string, salt []byte) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, token, salt, 4096, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func encryptBootstrap(token string, files map[string][]byte) (string, error) {
	salt := make([]byte, 8)
	rand.Read(salt) //nolint:errcheck // crypto/rand ends the program rather than fail
	box, err := bootstrapCipher(token, salt)
	if err != nil {
		return "", err
	}
	raw, err := json.Marshal(files)
	return hex.EncodeToString(salt) + ":" + hex.EncodeToString(box.Seal(nil, nil, raw, nil)), err
}

func decryptBootstrap(token, value string) (map[string][]byte, error) {
	saltHex, boxHex, _ := strings.Cut(value, ":")
	salt, err := hex.DecodeString(saltHex)
	if err != nil {
		return nil, err
	}
	sealed, err := hex.DecodeString(boxHex)
	if err != nil {
		return nil, err
	}
	box, err := bootstrapCipher(token, salt)
	if err != nil {
		return nil, err
	}
	raw, err := box.Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, errOtherToken
	}
	var files map[string][]byte
	return files, json.Unmarshal(raw, &files)
}

// loadBootstrap reads the data that belong to this token. nil: the datastore is new.
func loadBootstrap(ctx context.Context, store *clientv3.Client, token string) (map[string][]byte, error) {
	found, err := store.Get(ctx, bootstrapPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	for _, pair := range found.Kvs {
		if string(pair.Key) == bootstrapKey(token) {
			return decryptBootstrap(token, string(pair.Value))
		}
	}
	if len(found.Kvs) > 0 {
		return nil, errOtherToken
	}
	return nil, nil
}

// keepBootstrap writes this server's shared files into a new datastore, and compares them with those of an old one.
func (n *node) keepBootstrap(ctx context.Context, store *clientv3.Client) error {
	stored, err := loadBootstrap(ctx, store, n.serverSecret)
	if err != nil {
		return err
	}
	if stored != nil {
		return n.dirs.writeBootstrap(stored)
	}
	return n.putBootstrap(ctx, store, n.serverSecret)
}

// putBootstrap stores the shared files as they are on disk, encrypted with the token given. The transaction has the form
// that kine knows.
func (n *node) putBootstrap(ctx context.Context, store *clientv3.Client, token string) error {
	mine, err := n.dirs.readBootstrap()
	if err != nil {
		return err
	}
	value, err := encryptBootstrap(token, mine)
	if err != nil {
		return err
	}
	key := bootstrapKey(token)
	found, err := store.Get(ctx, key)
	if err != nil {
		return err
	}
	revision := int64(0)
	if len(found.Kvs) > 0 {
		revision = found.Kvs[0].ModRevision
	}
	done, err := store.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	if err == nil && !done.Succeeded {
		return errors.New("the bootstrap data changed meanwhile")
	}
	return err
}

// dropBootstrap forgets the data of a token that was rotated.
func dropBootstrap(ctx context.Context, store *clientv3.Client, token string) error {
	key := bootstrapKey(token)
	found, err := store.Get(ctx, key)
	if err != nil || len(found.Kvs) == 0 {
		return err
	}
	_, err = store.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", found.Kvs[0].ModRevision)).
		Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
	return err
}

// withStore opens the datastore for a moment.
func (n *node) withStore(do func(store *clientv3.Client) error) error {
	if m := n.member.Load(); m != nil {
		return do(m.client)
	}
	store, err := newEtcdClient(nil, "unix://"+n.kineSocket())
	if err != nil {
		return err
	}
	defer store.Close()
	return do(store)
}

// storeBootstrap stores what this server changed for all.
func (n *node) storeBootstrap(ctx context.Context) error {
	return n.withStore(func(store *clientv3.Client) error { return n.putBootstrap(ctx, store, n.serverSecret) })
}
