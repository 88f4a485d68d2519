package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// nodeFinalizer holds a deleted Node until what belongs to it is gone too. Its name is k3s's.
const nodeFinalizer = "wrangler.cattle.io/node"

var errNodePassword = errors.New("Node password rejected, duplicate hostname or contents of '" + nodePasswordFile + //nolint:staticcheck // k3s's words
	"' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag")

// nodePassword reads the file by which the cluster recognises a host that comes back, and makes it (contract §0.5).
func nodePassword() (string, error) {
	raw, err := os.ReadFile(nodePasswordFile)
	if err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	password := randomHex(16)
	return password, writeFile(nodePasswordFile, []byte(password+"\n"), 0o600)
}

// digest is what is kept of a secret with 128 random bits: enough to recognise it.
func digest(salt, secret string) string { return salt + ":" + mac(salt, secret) }

func mac(key, text string) string {
	sum := hmac.New(sha256.New, []byte(key))
	sum.Write([]byte(text))
	return hex.EncodeToString(sum.Sum(nil))
}

func isDigestOf(kept, secret string) bool {
	salt, _, _ := strings.Cut(kept, ":")
	return hmac.Equal([]byte(kept), []byte(digest(salt, secret)))
}

func passwordSecret(node string) string { return node + ".node-password.k3s" }

// checkNodePassword compares a host's password with the one that the node's name was first used with.
func (c *cluster) checkNodePassword(ctx context.Context, node, password string) error {
	secrets := c.core.Secrets("kube-system")
	found, err := secrets.Get(ctx, passwordSecret(node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		immutable := true
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: passwordSecret(node)},
			Immutable:  &immutable,
			Data:       map[string][]byte{"hash": []byte(digest(randomHex(8), password))},
		}, metav1.CreateOptions{})
		return err
	}
	if err == nil && !isDigestOf(string(found.Data["hash"]), password) {
		return errNodePassword
	}
	return err
}

// tendNodes puts the finalizer on every Node and, when one is deleted, clears away what belongs to it. Every server does
// so; each step may have been done by another one.
func (n *node) tendNodes(ctx context.Context, c *cluster) {
	every(ctx, 2*time.Second, "nodes", func() error {
		nodes, err := c.core.Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		for _, node := range nodes.Items {
			has := slices.Contains(node.Finalizers, nodeFinalizer)
			switch {
			case node.DeletionTimestamp == nil && !has:
				err = c.setFinalizers(ctx, &node, append(node.Finalizers, nodeFinalizer))
			case node.DeletionTimestamp != nil && has:
				logrus.Infof("Node %s is being deleted: deleting Secret %s", node.Name, passwordSecret(node.Name))
				if m := n.member.Load(); m != nil {
					err = m.forgetMember(ctx, &node)
				}
				if err == nil {
					err = notFoundIsNil(c.core.Secrets("kube-system").Delete(ctx, passwordSecret(node.Name), metav1.DeleteOptions{}))
				}
				if err == nil {
					err = c.setFinalizers(ctx, &node, slices.DeleteFunc(node.Finalizers, func(f string) bool { return f == nodeFinalizer }))
				}
			}
			if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// setFinalizers fails with a conflict when somebody else changed the Node meanwhile.
func (c *cluster) setFinalizers(ctx context.Context, node *corev1.Node, finalizers []string) error {
	raw, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": node.ResourceVersion, "finalizers": finalizers,
	}})
	if err != nil {
		return err
	}
	_, err = c.core.Nodes().Patch(ctx, node.Name, types.MergePatchType, raw, metav1.PatchOptions{})
	return err
}

func notFoundIsNil(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// every repeats a step until the context ends. It tells of a failure once, and again when it has another reason.
func every(ctx context.Context, pause time.Duration, what string, step func() error) {
	told := ""
	for ctx.Err() == nil {
		if err := step(); err == nil {
			told = ""
		} else if err.Error() != told && ctx.Err() == nil {
			told = err.Error()
			logrus.Warnf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
