package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"
)

const kubeconfigPath = "/etc/rancher/k3s/k3s.yaml"

func runServer(args []string) error {
	return runNode("server", args, func(ctx context.Context, n *node) error {
		if n.cfg.on("cluster-reset") {
			if err := n.resetCluster(ctx); err != nil {
				return err
			}
			n.fail(errStopped)
			return nil
		}
		if err := n.prepare(ctx); err != nil {
			return err
		}
		return n.start(ctx)
	})
}

// prepare writes tokens, certificates and kubeconfigs; all of it before anything runs.
func (n *node) prepare(ctx context.Context) error {
	if err := os.MkdirAll(n.dirs.data, 0o755); err != nil {
		return err
	}
	for _, folder := range []string{n.dirs.server("db"), n.dirs.server("cred"), n.dirs.tls()} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	if err := n.leaveOldMember(); err != nil {
		return err
	}
	if n.usesEtcd() && !n.hasEtcd() && fileExists(n.dirs.server("db", "state.db")) {
		return fmt.Errorf("migrating SQLite to etcd is not in this stand-in (%s)", banner)
	}
	var err error
	if n.serverSecret, err = serverSecret(ctx, n.dirs, n.cfg); err != nil {
		return err
	}
	agentToken, err := givenToken(ctx, n.cfg, "agent-token")
	if err != nil {
		return err
	}
	if n.agentSecret, _, err = secretOf(agentToken); err != nil {
		return err
	}
	if n.joins() {
		if err := n.joinServers(ctx); err != nil {
			return err
		}
	}
	apiHosts := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + n.Domain,
		"localhost", "127.0.0.1", "::1", n.name, n.ip, n.apiService,
	}
	if n.bindAddress != "" && n.bindAddress != "0.0.0.0" {
		apiHosts = append(apiHosts, n.bindAddress)
	}
	apiHosts = append(append(apiHosts, n.cfg.list("tls-san")...), n.cfg.list("advertise-address")...)
	if err := ensurePKI(n.dirs, n.name, apiHosts, []string{n.name, "localhost", "127.0.0.1", n.ip}); err != nil {
		return err
	}
	if err := n.ensureEncryption(); err != nil {
		return err
	}
	return n.writeKubeconfigs()
}

// localURL is the API as parts on this host reach it.
func (n *node) localURL() string { return "https://" + net.JoinHostPort("127.0.0.1", n.localPort) }

// adminURL is the API as the administrator's kubeconfig names it.
func (n *node) adminURL() string {
	host := "127.0.0.1"
	if n.bindAddress != "" && n.bindAddress != "0.0.0.0" {
		host = n.bindAddress
	}
	return "https://" + net.JoinHostPort(host, n.port)
}

func (n *node) kubeconfig(url, ca, cert string) ([]byte, error) {
	parts := []any{url}
	for _, file := range []string{ca, cert + ".crt", cert + ".key"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		parts = append(parts, base64.StdEncoding.EncodeToString(raw))
	}
	return fmt.Appendf(nil, `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %[2]s
    server: %[1]s
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: %[3]s
    client-key-data: %[4]s
`, parts...), nil
}

func (n *node) writeKubeconfigs() error {
	files := map[string]string{
		n.dirs.agent("kubelet.kubeconfig"):   n.dirs.agent("client-kubelet"),
		n.dirs.agent("kubeproxy.kubeconfig"): n.dirs.agent("client-kube-proxy"),
	}
	if n.isServer {
		files[n.dirs.server("cred", "admin.kubeconfig")] = n.dirs.tls("client-admin")
		files[n.dirs.server("cred", "controller.kubeconfig")] = n.dirs.tls("client-controller")
		files[n.dirs.server("cred", "scheduler.kubeconfig")] = n.dirs.tls("client-scheduler")
	}
	serverCA := n.dirs.agent("server-ca.crt")
	for file, cert := range files {
		content, err := n.kubeconfig(n.localURL(), serverCA, cert)
		if err != nil {
			return err
		}
		if err := writeFile(file, content, 0o600); err != nil {
			return err
		}
	}
	if !n.isServer {
		return nil
	}
	content, err := n.kubeconfig(n.adminURL(), serverCA, n.dirs.tls("client-admin"))
	if err != nil {
		return err
	}
	return n.writeAdminKubeconfig(content)
}

// writeAdminKubeconfig follows the keys write-kubeconfig and -mode. A mode that is no octal number is
// only logged, as k3s does: an unquoted 0600 arrives here as "384" (contract §0.8).
func (n *node) writeAdminKubeconfig(content []byte) error {
	target := n.cfg.text("write-kubeconfig", kubeconfigPath)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o600)
	if asked := n.cfg.text("write-kubeconfig-mode", ""); asked != "" {
		bits, err := strconv.ParseUint(asked, 8, 32)
		if err != nil {
			logrus.Errorf("Failed to set %s to mode %s: %v", target, asked, err)
		} else {
			mode = os.FileMode(bits)
		}
	}
	if err := writeFile(target, content, mode); err != nil {
		return err
	}
	if target == kubeconfigPath {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(kubeconfigPath), 0o755); err != nil {
		return err
	}
	return relink(target, kubeconfigPath)
}

// start brings up everything in order and returns when the node is registered; the children run on.
func (n *node) start(ctx context.Context) error {
	admin := n.restConfig(n.dirs.tls("client-admin"))
	cl, err := newCluster(admin)
	if err != nil {
		return err
	}
	if err := n.startSupervisor(ctx, cl); err != nil {
		return err
	}
	if _, err := startBalancer(ctx, n.localPort, "", net.JoinHostPort(apiBackend, n.port)); err != nil {
		return err
	}
	storeFlags, err := n.startDatastore(ctx)
	if err != nil {
		return err
	}
	if fileExists(n.dirs.server(encryptionConfig)) {
		storeFlags = append(storeFlags, "encryption-provider-config="+n.dirs.server(encryptionConfig),
			"encryption-provider-config-automatic-reload=true")
	}
	if err := writeTokens(n.dirs, n.serverSecret, n.agentSecret); err != nil {
		return err
	}
	if err := n.startAPI(storeFlags); err != nil {
		return err
	}
	// Beside the API server, because the two do not need each other and importing images takes seconds.
	runtimeStarted := make(chan error, 1)
	go func() { runtimeStarted <- n.startRuntime(ctx) }()
	if err := n.waitAPI(ctx, admin); err != nil {
		return err
	}
	if err := n.ready(); err != nil {
		return err
	}
	if err := n.startControllers(); err != nil {
		return err
	}
	if err := n.deployPackaged(ctx, cl); err != nil {
		return err
	}
	password, err := nodePassword()
	if err != nil {
		return err
	}
	if err := n.afterReset(ctx, cl); err != nil {
		return err
	}
	if err := cl.checkNodePassword(ctx, n.name, password); err != nil {
		return err
	}
	go n.tendNodes(ctx, cl)
	if m := n.member.Load(); m != nil {
		go n.tendMember(ctx, cl, m)
		if err := n.scheduleSnapshots(ctx); err != nil {
			return err
		}
	}
	if err := <-runtimeStarted; err != nil {
		return err
	}
	return n.startNode(ctx, cl)
}

// startDatastore starts etcd or kine, has the token checked against it, and gives the API server's flags for it.
func (n *node) startDatastore(ctx context.Context) ([]string, error) {
	if n.usesEtcd() {
		m, err := n.startEtcd(ctx)
		if err != nil {
			return nil, err
		}
		n.member.Store(m)
		return []string{
			"etcd-servers=" + localEtcd,
			"etcd-cafile=" + n.dirs.tls("etcd/server-ca.crt"),
			"etcd-certfile=" + n.dirs.tls("etcd/client.crt"),
			"etcd-keyfile=" + n.dirs.tls("etcd/client.key"),
		}, n.keepBootstrap(ctx, m.client)
	}
	socket := n.kineSocket()
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	err := n.children.start("kine", "", "kine", "--endpoint", "sqlite://"+n.dirs.server("db", "state.db")+
		"?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate",
		"--listen-address", "unix://"+socket, "--metrics-bind-address", "0")
	if err != nil {
		return nil, err
	}
	err = waitFor(ctx, "Datastore is up", 20*time.Millisecond, func() error { return dialUnix(socket) })
	if err != nil {
		return nil, err
	}
	return []string{"etcd-servers=unix://" + socket}, n.withStore(func(store *clientv3.Client) error {
		return n.keepBootstrap(ctx, store)
	})
}

func (n *node) kineSocket() string { return n.dirs.server("kine.sock") }

func (n *node) startAPI(storeFlags []string) error {
	d := n.dirs
	flags := []string{
		"advertise-address=" + n.cfg.text("advertise-address", n.ip),
		"allow-privileged=true",
		"anonymous-auth=false",
		"api-audiences=https://kubernetes.default.svc." + n.Domain + ",k3s",
		"authorization-mode=Node,RBAC",
		"bind-address=" + apiBackend, // and the supervisor everywhere else
		"cert-dir=" + d.tls("temporary-certs"),
		"client-ca-file=" + d.tls("client-ca.crt"),
		"enable-admission-plugins=NodeRestriction",
		"enable-aggregator-routing=true",
		"kubelet-certificate-authority=" + d.tls("server-ca.crt"),
		"kubelet-client-certificate=" + d.tls("client-kube-apiserver.crt"),
		"kubelet-client-key=" + d.tls("client-kube-apiserver.key"),
		"kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"permit-port-sharing=true",
		"profiling=false",
		"proxy-client-cert-file=" + d.tls("client-auth-proxy.crt"),
		"proxy-client-key-file=" + d.tls("client-auth-proxy.key"),
		"requestheader-allowed-names=system:auth-proxy",
		"requestheader-client-ca-file=" + d.tls("request-header-ca.crt"),
		"requestheader-extra-headers-prefix=X-Remote-Extra-",
		"requestheader-group-headers=X-Remote-Group",
		"requestheader-username-headers=X-Remote-User",
		"secure-port=" + n.port,
		"service-account-issuer=https://kubernetes.default.svc." + n.Domain,
		"service-account-key-file=" + d.tls("service.key"),
		"service-account-signing-key-file=" + d.tls("service.key"),
		"service-cluster-ip-range=" + n.ServiceCIDR,
		"service-node-port-range=" + n.cfg.text("service-node-port-range", "30000-32767"),
		"tls-cert-file=" + d.tls("serving-kube-apiserver.crt"),
		"tls-private-key-file=" + d.tls("serving-kube-apiserver.key"),
	}
	return n.component("kube-apiserver", append(flags, storeFlags...), "kube-apiserver-arg")
}

// component starts one part of the multicall binary, with the flags that the configuration adds for it.
func (n *node) component(name string, flags []string, key string) error {
	return n.children.start(name, "", append([]string{"node", name}, arguments(flags, n.cfg.list(key))...)...)
}

func (n *node) waitAPI(ctx context.Context, admin *rest.Config) error {
	client, err := rest.HTTPClientFor(admin)
	if err != nil {
		return err
	}
	return waitFor(ctx, "Kube API server is ready", 50*time.Millisecond, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.localURL()+"/readyz", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: %s", answer.Status)
		}
		return nil
	})
}

// volumePlugins is where k3s has them; Kubernetes' own default would leave a folder in /usr/libexec.
func (n *node) volumePlugins() string {
	return n.dirs.agent("libexec", "kubernetes", "kubelet-plugins", "volume", "exec")
}

func (n *node) startControllers() error {
	d := n.dirs
	controller, scheduler := d.server("cred", "controller.kubeconfig"), d.server("cred", "scheduler.kubeconfig")
	flags := []string{
		"allocate-node-cidrs=true",
		"authentication-kubeconfig=" + controller,
		"authorization-kubeconfig=" + controller,
		"bind-address=127.0.0.1",
		"cluster-cidr=" + n.ClusterCIDR,
		"cluster-signing-kube-apiserver-client-cert-file=" + d.tls("client-ca.crt"),
		"cluster-signing-kube-apiserver-client-key-file=" + d.tls("client-ca.key"),
		"cluster-signing-kubelet-client-cert-file=" + d.tls("client-ca.crt"),
		"cluster-signing-kubelet-client-key-file=" + d.tls("client-ca.key"),
		"cluster-signing-kubelet-serving-cert-file=" + d.tls("server-ca.crt"),
		"cluster-signing-kubelet-serving-key-file=" + d.tls("server-ca.key"),
		"cluster-signing-legacy-unknown-cert-file=" + d.tls("server-ca.crt"),
		"cluster-signing-legacy-unknown-key-file=" + d.tls("server-ca.key"),
		"flex-volume-plugin-dir=" + n.volumePlugins(),
		"kubeconfig=" + controller,
		fmt.Sprintf("leader-elect=%t", n.usesEtcd()),
		"profiling=false",
		"root-ca-file=" + d.tls("server-ca.crt"),
		"service-account-private-key-file=" + d.tls("service.key"),
		"service-cluster-ip-range=" + n.ServiceCIDR,
		"use-service-account-credentials=true",
	}
	if err := n.component("kube-controller-manager", flags, "kube-controller-manager-arg"); err != nil {
		return err
	}
	return n.component("kube-scheduler", []string{
		"authentication-kubeconfig=" + scheduler,
		"authorization-kubeconfig=" + scheduler,
		"bind-address=127.0.0.1",
		"kubeconfig=" + scheduler,
		fmt.Sprintf("leader-elect=%t", n.usesEtcd()),
		"profiling=false",
	}, "kube-scheduler-arg")
}
