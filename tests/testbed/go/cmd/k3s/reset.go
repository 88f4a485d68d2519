package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	etcdsnapshot "go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (n *node) resetFlag() string { return n.dirs.server("db", "reset-flag") }

// resetCluster makes this server the only member, with its own data or with those of a snapshot, and ends (contract §6).
func (n *node) resetCluster(ctx context.Context) error {
	from := n.cfg.text("cluster-reset-restore-path", "")
	switch {
	case n.cfg.isSet("server"):
		return errors.New("cannot perform cluster-reset while server URL is set - remove server from configuration before resetting")
	case from == "" && fileExists(n.resetFlag()):
		return fmt.Errorf("Managed etcd cluster membership was previously reset, please remove the cluster-reset flag and start k3s normally. "+ //nolint:staticcheck // k3s's words
			"If you need to perform another cluster reset, you must first manually delete the file at %s", n.resetFlag())
	case from == "" && !n.hasEtcd():
		return errNoEtcd
	}
	if from != "" {
		if _, err := os.Stat(from); err != nil {
			return wrapf(err, "etcd: snapshot path does not exist")
		}
		if !n.cfg.isSet("token") && !n.cfg.isSet("token-file") && !fileExists(n.dirs.server("token")) {
			return fmt.Errorf("%s does not exist, please pass --token to complete the restoration", n.dirs.server("token"))
		}
	}
	var err error
	if n.serverSecret, err = serverSecret(ctx, n.dirs, n.cfg); err != nil {
		return err
	}
	if from == "" {
		err = n.onlyMember(ctx)
	} else {
		err = n.restoreSnapshot(ctx, from)
	}
	if err != nil {
		return err
	}
	if err := writeFile(n.resetFlag(), nil, 0o600); err != nil {
		return err
	}
	logrus.Info("Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. " +
		"Backup and delete ${datadir}/server/db on each peer etcd server and rejoin the nodes")
	return nil
}

// afterReset is for the first normal start: the restored data may know this node's name with another host's password.
func (n *node) afterReset(ctx context.Context, cl *cluster) error {
	if !fileExists(n.resetFlag()) {
		return nil
	}
	err := notFoundIsNil(cl.core.Secrets("kube-system").Delete(ctx, passwordSecret(n.name), metav1.DeleteOptions{}))
	if err != nil {
		return err
	}
	return os.Remove(n.resetFlag())
}

// onlyMember drops all other members from this server's own data.
func (n *node) onlyMember(ctx context.Context) error {
	name, err := n.memberName()
	if err != nil {
		return err
	}
	cfg, err := n.etcdConfig(name, name+"="+n.peerURL(), embed.ClusterStateFlagNew)
	if err != nil {
		return err
	}
	cfg.ForceNewCluster = true
	_, err = n.runEtcd(ctx, cfg)
	return err
}

// restoreSnapshot keeps the old data aside, makes new ones from the file, and takes the files that all servers share out of
// them: a new host has no others.
func (n *node) restoreSnapshot(ctx context.Context, from string) error {
	if fileExists(n.etcdDir()) {
		if err := n.setAside(); err != nil {
			return err
		}
	}
	name := n.name + "-" + randomHex(4)
	err := etcdsnapshot.NewV3(zap.NewNop()).Restore(etcdsnapshot.RestoreConfig{
		SnapshotPath: from, Name: name, OutputDataDir: n.etcdDir(),
		PeerURLs: []string{n.peerURL()}, InitialCluster: name + "=" + n.peerURL(), InitialClusterToken: "etcd-cluster",
	})
	if err != nil {
		return wrapf(err, "restoring %s", from)
	}
	if err := writeFile(n.etcdDir("name"), []byte(name), 0o600); err != nil {
		return err
	}
	cfg, err := n.etcdConfig(name, name+"="+n.peerURL(), embed.ClusterStateFlagNew)
	if err != nil {
		return err
	}
	// Nobody but this process reaches it, and there may be no certificates yet.
	client, peer := url.URL{Scheme: "http", Host: "127.0.0.1:2399"}, url.URL{Scheme: "http", Host: "127.0.0.1:2400"}
	cfg.ListenClientUrls, cfg.ListenPeerUrls, cfg.ListenMetricsUrls = []url.URL{client}, []url.URL{peer}, nil
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = transport.TLSInfo{}, transport.TLSInfo{}
	temporary, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer temporary.Close()
	select {
	case <-temporary.Server.ReadyNotify():
	case <-ctx.Done():
		return ctx.Err()
	}
	store, err := newEtcdClient(nil, client.String())
	if err != nil {
		return err
	}
	defer store.Close()
	files, err := loadBootstrap(ctx, store, n.serverSecret)
	if err != nil {
		return err
	}
	if files == nil {
		return fmt.Errorf("%s is no snapshot of a k3s datastore", from)
	}
	if err := n.dirs.writeBootstrap(files); err != nil {
		return err
	}
	return writeTokens(n.dirs, n.serverSecret, n.agentSecret)
}
