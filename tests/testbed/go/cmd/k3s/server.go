package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

const kubeconfigPath = "/etc/rancher/k3s/k3s.yaml"

// node is what a server knows of itself after its configuration is read.
type node struct {
	cfg      *settings
	dirs     dirs
	children *children

	name, ip    string
	bindAddress string // "" for all addresses
	port        string
	clusterCIDR string
	serviceCIDR string
	clusterDNS  string
	apiService  string // first service address: the API as pods see it
	domain      string
	disabled    map[string]bool
}

func runServer(args []string) error {
	cfg, err := load("server", args, os.Getenv)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		end(errStopped)
	}()
	logrus.Infof("Starting k3s %s: %s", version, banner)
	for _, warning := range cfg.warnings {
		logrus.Warn(warning)
	}
	n, err := newNode(cfg)
	if err != nil {
		return err
	}
	if err := n.sayWhatIsMissing(); err != nil {
		return err
	}
	if err := n.prepare(ctx); err != nil {
		return stoppedIsFine(ctx, err)
	}
	bin, err := n.dirs.unpack()
	if err != nil {
		return err
	}
	n.children = newChildren(bin)
	defer n.children.stop()
	go func() {
		end(<-n.children.dead)
	}()
	if err := n.start(ctx); err != nil {
		return stoppedIsFine(ctx, err)
	}
	<-ctx.Done()
	return stoppedIsFine(ctx, nil)
}

var errStopped = errors.New("stopped by a signal")

// stoppedIsFine tells an ordered stop, which ends with 0, from the end of a child, after which systemd must
// start the unit again.
func stoppedIsFine(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return err
	case errors.Is(cause, errStopped):
		logrus.Info("Stopping; shims and pods go on")
		return nil
	default:
		return cause
	}
}

func newNode(cfg *settings) (*node, error) {
	n := &node{
		cfg:         cfg,
		dirs:        dirs{cfg.text("data-dir", "/var/lib/rancher/k3s")},
		bindAddress: cfg.text("bind-address", ""),
		port:        cfg.text("https-listen-port", "6443"),
		clusterCIDR: first(cfg.list("cluster-cidr"), "10.42.0.0/16"),
		serviceCIDR: first(cfg.list("service-cidr"), "10.43.0.0/16"),
		domain:      cfg.text("cluster-domain", "cluster.local"),
		name:        cfg.text("node-name", ""),
		ip:          first(cfg.list("node-ip"), ""),
		disabled:    map[string]bool{},
	}
	for _, name := range cfg.list("disable") {
		n.disabled[name] = true
	}
	if n.name == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		n.name, _, _ = strings.Cut(name, ".")
	}
	n.name = strings.ToLower(n.name)
	if n.ip == "" {
		ip, err := utilnet.ChooseHostInterface() // needs a default route, as k3s does
		if err != nil {
			return nil, wrapf(err, "no address for this node")
		}
		n.ip = ip.String()
	}
	_, services, err := net.ParseCIDR(n.serviceCIDR)
	if err != nil {
		return nil, err
	}
	if services.IP.To4() == nil {
		return nil, errors.New("only IPv4 is in this stand-in")
	}
	n.apiService = nth(services.IP, 1)
	n.clusterDNS = first(cfg.list("cluster-dns"), nth(services.IP, 10))
	return n, nil
}

func first(values []string, fallback string) string {
	if len(values) == 0 {
		return fallback
	}
	return values[0]
}

func nth(base net.IP, i byte) string {
	ip := slices.Clone(base.To4())
	ip[3] += i
	return ip.String()
}

// sayWhatIsMissing logs and reports what is accepted without effect, and refuses what would prove a lie.
func (n *node) sayWhatIsMissing() error {
	report, refuse := n.cfg.withoutEffect()
	if url := n.cfg.text("server", ""); url != "" {
		if !strings.HasPrefix(url, "https://") {
			return fmt.Errorf("only https:// URLs are supported, invalid scheme in %s", url)
		}
		// With a token this would be a join. Without one k3s starts a cluster of its own (contract §0.4).
		if n.cfg.isSet("token") || n.cfg.isSet("token-file") {
			refuse = append(refuse, "server")
		} else {
			report = append(report, "server")
		}
	}
	if len(refuse) > 0 {
		return fmt.Errorf("not in this stand-in yet: %s (%s)", strings.Join(refuse, ", "), banner)
	}
	lines := []string{fmt.Sprintf("stand-in: %s is a %s", version, banner)}
	for _, name := range report {
		lines = append(lines, fmt.Sprintf("stand-in: %s accepted, not honoured", name))
	}
	if fileExists("/etc/rancher/k3s/registries.yaml") {
		lines = append(lines, "stand-in: registries.yaml accepted, not honoured")
	}
	for _, part := range []string{"ccm", "metrics-server", "runtimes", "servicelb", "traefik"} {
		if !n.disabled[part] {
			lines = append(lines, fmt.Sprintf("stand-in: packaged %s is absent", part))
		}
	}
	if backend := n.backend(); backend != "none" {
		lines = append(lines, fmt.Sprintf("stand-in: flannel-backend %s is a bridge, not flannel", backend))
	}
	for _, line := range lines {
		logrus.Warn(line)
	}
	return n.dirs.report(lines)
}

func (n *node) backend() string { return n.cfg.text("flannel-backend", "vxlan") }

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
	secret, err := serverSecret(ctx, n.dirs, n.cfg)
	if err != nil {
		return err
	}
	agentToken, err := givenToken(ctx, n.cfg, "agent-token")
	if err != nil {
		return err
	}
	agentSecret, _, err := secretOf(agentToken)
	if err != nil {
		return err
	}
	apiHosts := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + n.domain,
		"localhost", "127.0.0.1", "::1", n.name, n.ip, n.apiService,
	}
	if n.bindAddress != "" && n.bindAddress != "0.0.0.0" {
		apiHosts = append(apiHosts, n.bindAddress)
	}
	apiHosts = append(append(apiHosts, n.cfg.list("tls-san")...), n.cfg.list("advertise-address")...)
	if err := ensurePKI(n.dirs, n.name, apiHosts, []string{n.name, "localhost", "127.0.0.1", n.ip}); err != nil {
		return err
	}
	if err := writeTokens(n.dirs, secret, agentSecret); err != nil {
		return err
	}
	if err := nodePassword(); err != nil {
		return err
	}
	return n.writeKubeconfigs()
}

// localURL is the API as parts on this host reach it.
func (n *node) localURL() string {
	host := "127.0.0.1"
	if n.bindAddress != "" && n.bindAddress != "0.0.0.0" {
		host = n.bindAddress
	}
	return "https://" + net.JoinHostPort(host, n.port)
}

func (n *node) kubeconfig(ca, cert string) ([]byte, error) {
	var parts []any
	parts = append(parts, n.localURL())
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
	serverCA := n.dirs.tls("server-ca.crt")
	for file, cert := range map[string]string{
		n.dirs.server("cred", "admin.kubeconfig"):      n.dirs.tls("client-admin"),
		n.dirs.server("cred", "controller.kubeconfig"): n.dirs.tls("client-controller"),
		n.dirs.server("cred", "scheduler.kubeconfig"):  n.dirs.tls("client-scheduler"),
		n.dirs.agent("kubelet.kubeconfig"):             n.dirs.agent("client-kubelet"),
		n.dirs.agent("kubeproxy.kubeconfig"):           n.dirs.agent("client-kube-proxy"),
	} {
		content, err := n.kubeconfig(serverCA, cert)
		if err != nil {
			return err
		}
		if err := writeFile(file, content, 0o600); err != nil {
			return err
		}
	}
	content, err := n.kubeconfig(serverCA, n.dirs.tls("client-admin"))
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
	if err := n.startAPI(ctx); err != nil {
		return err
	}
	// Beside the API server, because the two do not need each other and importing images takes seconds.
	runtimeStarted := make(chan error, 1)
	go func() { runtimeStarted <- n.startRuntime(ctx) }()
	admin := n.restConfig()
	if err := n.waitAPI(ctx, admin); err != nil {
		return err
	}
	if err := notifyReady(); err != nil {
		return wrapf(err, "systemd notification")
	}
	logrus.Infof("k3s is up and running (stand-in %s)", version)
	if err := n.startControllers(); err != nil {
		return err
	}
	cl, err := newCluster(admin)
	if err != nil {
		return err
	}
	if err := n.deployPackaged(ctx, cl); err != nil {
		return err
	}
	if err := <-runtimeStarted; err != nil {
		return err
	}
	return n.startNode(ctx, cl)
}

func (n *node) startAPI(ctx context.Context) error {
	socket := n.dirs.server("kine.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err := n.children.start("kine", "", "kine", "--endpoint", "sqlite://"+n.dirs.server("db", "state.db")+
		"?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate",
		"--listen-address", "unix://"+socket, "--metrics-bind-address", "0")
	if err != nil {
		return err
	}
	err = waitFor(ctx, "Datastore is up", 20*time.Millisecond, func() error { return dialUnix(socket) })
	if err != nil {
		return err
	}
	d := n.dirs
	flags := []string{
		"advertise-address=" + n.cfg.text("advertise-address", n.ip),
		"allow-privileged=true",
		"anonymous-auth=false",
		"api-audiences=https://kubernetes.default.svc." + n.domain + ",k3s",
		"authorization-mode=Node,RBAC",
		"bind-address=" + n.cfg.text("bind-address", "0.0.0.0"),
		"cert-dir=" + d.tls("temporary-certs"),
		"client-ca-file=" + d.tls("client-ca.crt"),
		"enable-admission-plugins=NodeRestriction",
		"enable-aggregator-routing=true",
		"etcd-servers=unix://" + socket,
		"kubelet-certificate-authority=" + d.tls("server-ca.crt"),
		"kubelet-client-certificate=" + d.tls("client-kube-apiserver.crt"),
		"kubelet-client-key=" + d.tls("client-kube-apiserver.key"),
		"kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"profiling=false",
		"proxy-client-cert-file=" + d.tls("client-auth-proxy.crt"),
		"proxy-client-key-file=" + d.tls("client-auth-proxy.key"),
		"requestheader-allowed-names=system:auth-proxy",
		"requestheader-client-ca-file=" + d.tls("request-header-ca.crt"),
		"requestheader-extra-headers-prefix=X-Remote-Extra-",
		"requestheader-group-headers=X-Remote-Group",
		"requestheader-username-headers=X-Remote-User",
		"secure-port=" + n.port,
		"service-account-issuer=https://kubernetes.default.svc." + n.domain,
		"service-account-key-file=" + d.tls("service.key"),
		"service-account-signing-key-file=" + d.tls("service.key"),
		"service-cluster-ip-range=" + n.serviceCIDR,
		"service-node-port-range=" + n.cfg.text("service-node-port-range", "30000-32767"),
		"tls-cert-file=" + d.tls("serving-kube-apiserver.crt"),
		"tls-private-key-file=" + d.tls("serving-kube-apiserver.key"),
	}
	return n.component("kube-apiserver", flags, "kube-apiserver-arg")
}

// component starts one part of the multicall binary, with the flags that the configuration adds for it.
func (n *node) component(name string, flags []string, key string) error {
	return n.children.start(name, "", append([]string{"node", name}, arguments(flags, n.cfg.list(key))...)...)
}

func (n *node) restConfig() *rest.Config {
	return &rest.Config{
		Host: n.localURL(),
		QPS:  -1, // no client-side limit: one launcher, one API server
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: n.dirs.tls("server-ca.crt"), CertFile: n.dirs.tls("client-admin.crt"), KeyFile: n.dirs.tls("client-admin.key"),
		},
	}
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
		"cluster-cidr=" + n.clusterCIDR,
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
		"leader-elect=false",
		"profiling=false",
		"root-ca-file=" + d.tls("server-ca.crt"),
		"service-account-private-key-file=" + d.tls("service.key"),
		"service-cluster-ip-range=" + n.serviceCIDR,
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
		"leader-elect=false",
		"profiling=false",
	}, "kube-scheduler-arg")
}
