package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// etcd runs inside the launcher, as it runs inside k3s: the real server library, with k3s's names, ports and timings.

const (
	etcdNameAnnotation    = "etcd.k3s.cattle.io/node-name"
	etcdAddressAnnotation = "etcd.k3s.cattle.io/node-address"
	localEtcd             = "https://127.0.0.1:2379"
	voterCondition        = corev1.NodeConditionType("EtcdIsVoter")
)

var errNoEtcd = errors.New("etcd datastore disabled")

// member is this server's part of the etcd cluster.
type member struct {
	name   string
	etcd   *embed.Etcd
	client *clientv3.Client // to this member; a learner answers little
}

func (n *node) etcdDir(parts ...string) string {
	return n.dirs.server(append([]string{"db", "etcd"}, parts...)...)
}

// hasEtcd follows k3s: the folder alone says nothing (contract §0.9).
func (n *node) hasEtcd() bool {
	info, err := os.Stat(n.etcdDir("member", "wal"))
	return err == nil && info.IsDir()
}

// joins tells whether this server is to become part of a cluster that it is no part of yet. Without a token k3s starts a
// cluster of its own (contract §0.4).
func (n *node) joins() bool {
	return n.isServer && n.cfg.isSet("server") && (n.cfg.isSet("token") || n.cfg.isSet("token-file")) && !n.hasEtcd()
}

func (n *node) usesEtcd() bool { return n.hasEtcd() || n.cfg.on("cluster-init") || n.joins() }

// leaveOldMember makes way for a new member where this server was removed from the cluster while it ran.
func (n *node) leaveOldMember() error {
	if !fileExists(n.etcdDir("tombstone")) {
		return nil
	}
	logrus.Info("tombstone file has been detected, removing data dir to rejoin the cluster")
	return n.setAside()
}

// setAside keeps the old data under another name.
func (n *node) setAside() error {
	return os.Rename(n.etcdDir(), fmt.Sprintf("%s-old-%d", n.etcdDir(), time.Now().Unix()))
}

func (n *node) memberName() (string, error) {
	raw, err := os.ReadFile(n.etcdDir("name"))
	if err == nil {
		return strings.TrimSpace(string(raw)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	name := n.name + "-" + randomHex(4)
	return name, writeFile(n.etcdDir("name"), []byte(name), 0o600)
}

func (n *node) peerURL() string { return "https://" + net.JoinHostPort(n.ip, "2380") }

func (n *node) etcdConfig(name, initial, state string) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster, cfg.ClusterState = name, n.etcdDir(), initial, state
	cfg.TickMs, cfg.ElectionMs = 500, 5000
	cfg.EnableGRPCGateway = false
	cfg.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration // NewConfig leaves 0: each request a warning
	level, err := zap.ParseAtomicLevel("warn")
	if err != nil {
		return nil, err
	}
	settings := zap.NewProductionConfig()
	settings.Level, settings.Encoding = level, "console"
	logger, err := settings.Build()
	if err != nil {
		return nil, err
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	tlsFiles := func(leaf, ca string) transport.TLSInfo {
		return transport.TLSInfo{CertFile: n.dirs.tls(leaf + ".crt"), KeyFile: n.dirs.tls(leaf + ".key"),
			TrustedCAFile: n.dirs.tls(ca + ".crt"), ClientCertAuth: true}
	}
	cfg.ClientTLSInfo = tlsFiles("etcd/server-client", "etcd/server-ca")
	cfg.PeerTLSInfo = tlsFiles("etcd/peer-server-client", "etcd/peer-ca")
	at := func(scheme, port string, hosts ...string) (out []url.URL) {
		for _, host := range hosts {
			out = append(out, url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)})
		}
		return out
	}
	const loopback = "127.0.0.1"
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at("https", "2379", loopback, n.ip), at("https", "2379", n.ip)
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at("https", "2380", loopback, n.ip), at("https", "2380", n.ip)
	cfg.ListenMetricsUrls = at("http", "2381", loopback)
	if n.cfg.on("etcd-expose-metrics") {
		cfg.ListenMetricsUrls = at("http", "2381", loopback, n.ip)
	}
	return cfg, nil
}

// startEtcd returns when the local member votes and answers, which takes a majority of the members.
func (n *node) startEtcd(ctx context.Context) (*member, error) {
	name, err := n.memberName()
	if err != nil {
		return nil, err
	}
	initial, state := name+"="+n.peerURL(), embed.ClusterStateFlagNew
	if n.via != nil && !n.hasEtcd() {
		state = embed.ClusterStateFlagExisting
		if initial, err = n.addLearner(ctx, name); err != nil {
			return nil, err
		}
	}
	cfg, err := n.etcdConfig(name, initial, state)
	if err != nil {
		return nil, err
	}
	return n.runEtcd(ctx, cfg)
}

func (n *node) runEtcd(ctx context.Context, cfg *embed.Config) (*member, error) {
	logrus.Infof("Running etcd %s", cfg.InitialCluster)
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, wrapf(err, "etcd")
	}
	n.atEnd(etcd.Close)
	m := &member{name: cfg.Name, etcd: etcd}
	go n.watchEtcd(ctx, m)
	if m.client, err = n.etcdClient(localEtcd); err != nil {
		return nil, err
	}
	err = waitFor(ctx, "etcd has a leader", 100*time.Millisecond, func() error {
		select {
		case <-etcd.Server.ReadyNotify():
			return nil
		default:
			return errors.New("no majority of the members answers")
		}
	})
	if err != nil {
		return nil, err
	}
	return m, waitFor(ctx, "etcd member votes", time.Second, func() error { return n.promote(ctx, m) })
}

// watchEtcd ends the launcher when etcd fails, and leaves a mark when this member was removed.
func (n *node) watchEtcd(ctx context.Context, m *member) {
	failure := errors.New("etcd stopped")
	select {
	case failure = <-m.etcd.Err():
	case <-m.etcd.Server.StopNotify():
	case <-ctx.Done():
	}
	switch {
	case ctx.Err() != nil:
	case !m.etcd.Server.IsIDRemoved(uint64(m.etcd.Server.MemberID())):
		n.fail(wrapf(failure, "etcd"))
	default:
		if err := writeFile(n.etcdDir("tombstone"), nil, 0o600); err != nil {
			n.fail(err)
		}
		logrus.Info("This node has been removed from the cluster - please restart k3s to rejoin the cluster")
	}
}

func (n *node) etcdClient(endpoints ...string) (*clientv3.Client, error) {
	info := transport.TLSInfo{CertFile: n.dirs.tls("etcd/client.crt"), KeyFile: n.dirs.tls("etcd/client.key"),
		TrustedCAFile: n.dirs.tls("etcd/server-ca.crt")}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, err
	}
	return newEtcdClient(config, endpoints...)
}

func newEtcdClient(config *tls.Config, endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: config, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// addLearner announces this server to the cluster as a member without a vote, and gives all members for its start. One that
// was announced before it lost power is found again by its address.
func (n *node) addLearner(ctx context.Context, name string) (string, error) {
	var members []etcdserverpb.Member
	if err := n.via.get(ctx, "/db/info", &members); err != nil {
		return "", err
	}
	var endpoints []string
	for _, one := range members {
		if !one.IsLearner {
			endpoints = append(endpoints, one.ClientURLs...)
		}
	}
	client, err := n.etcdClient(endpoints...)
	if err != nil {
		return "", err
	}
	defer client.Close()
	initial := []string{name + "=" + n.peerURL()}
	announced := false
	for _, one := range members {
		mine := slices.Contains(one.PeerURLs, n.peerURL())
		node, _, _ := cutLast(one.Name, "-")
		switch {
		case mine && (one.Name == "" || one.Name == name):
			announced = true
			continue
		case mine: // left from this server's earlier disk
			if _, err := client.MemberRemove(ctx, one.ID); err != nil {
				return "", wrapf(err, "removing the old member %s", one.Name)
			}
			continue
		case node == n.name:
			return "", errors.New("duplicate node name found, please use a unique name for this node")
		}
		for _, peer := range one.PeerURLs {
			initial = append(initial, one.Name+"="+peer)
		}
	}
	if !announced {
		err := waitFor(ctx, "etcd took in a new learner", 5*time.Second, func() error {
			limited, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err := client.MemberAddAsLearner(limited, []string{n.peerURL()})
			if errors.Is(err, rpctypes.ErrPeerURLExist) {
				return nil // the answer to an earlier try was lost
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return strings.Join(initial, ","), nil
}

// promote asks the voters to give this member a vote; they refuse until it has caught up.
func (n *node) promote(ctx context.Context, m *member) error {
	if !m.etcd.Server.IsLearner() {
		return nil
	}
	var endpoints []string
	for _, one := range m.etcd.Server.Cluster().Members() {
		if !one.IsLearner {
			endpoints = append(endpoints, one.ClientURLs...)
		}
	}
	client, err := n.etcdClient(endpoints...)
	if err != nil {
		return err
	}
	defer client.Close()
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = client.MemberPromote(limited, uint64(m.etcd.Server.MemberID()))
	if err != nil && !errors.Is(err, rpctypes.ErrMemberNotLearner) {
		return err
	}
	if m.etcd.Server.IsLearner() {
		return errors.New("promoted, but not told yet")
	}
	return nil
}

// dbInfo tells a joining server the members.
func (s *supervisor) dbInfo(w http.ResponseWriter, r *http.Request) {
	m := s.member.Load()
	if !s.usesEtcd() {
		http.Error(w, errNoEtcd.Error(), http.StatusBadRequest)
		return
	}
	if m == nil {
		answer(w, nil, errors.New("etcd is not up"))
		return
	}
	found, err := m.client.MemberList(r.Context())
	if err != nil {
		answer(w, nil, err)
		return
	}
	answer(w, found.Members, nil)
}

// tendMember keeps on this server's Node what k3s shows of its member.
func (n *node) tendMember(ctx context.Context, cl *cluster, m *member) {
	every(ctx, 5*time.Second, "etcd member", func() error {
		own, err := cl.core.Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := corev1.NodeCondition{Type: voterCondition, Status: corev1.ConditionTrue, Reason: "MemberIsVoter",
			Message: "Node is a voting member of the etcd cluster"}
		if m.etcd.Server.IsLearner() {
			want.Status, want.Reason, want.Message = corev1.ConditionFalse, "MemberIsLearner", "Node has not been promoted to voting member of the etcd cluster"
		}
		has := slices.ContainsFunc(own.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == want.Type && c.Status == want.Status
		})
		if !has {
			want.LastTransitionTime, want.LastHeartbeatTime = metav1.Now(), metav1.Now()
			patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{want}}})
			if err != nil {
				return err
			}
			if _, err := cl.core.Nodes().Patch(ctx, n.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
				return err
			}
		}
		if own.Annotations[etcdNameAnnotation] == m.name && own.Annotations[etcdAddressAnnotation] == n.ip {
			return nil
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
			"annotations": map[string]string{etcdNameAnnotation: m.name, etcdAddressAnnotation: n.ip},
		}})
		if err != nil {
			return err
		}
		_, err = cl.core.Nodes().Patch(ctx, n.name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
}

// forgetMember removes the etcd member of a deleted Node. A server leaves its own to the others, who outlive it.
func (m *member) forgetMember(ctx context.Context, node *corev1.Node) error {
	name := node.Annotations[etcdNameAnnotation]
	if name == "" {
		return nil
	}
	found, err := m.client.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, one := range found.Members {
		if one.Name != name {
			continue
		}
		if name == m.name {
			if len(found.Members) == 1 {
				return nil // the last one stays
			}
			return fmt.Errorf("etcd member %s is this server's own; another server removes it", name)
		}
		logrus.Infof("Removing name=%s id=%d from etcd", name, one.ID)
		if _, err := m.client.MemberRemove(ctx, one.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
			return err
		}
	}
	return nil
}
