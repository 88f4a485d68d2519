package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sirupsen/logrus"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// network is what all nodes of a cluster have in common. A server reads it from its configuration, an agent from
// its server.
type network struct {
	ClusterCIDR, ServiceCIDR, ClusterDNS, Domain string
	Backend                                      string // flannel-backend
	NoKubeProxy                                  bool
}

// node is what a server or agent knows of itself after its configuration is read.
type node struct {
	network
	cfg      *settings
	dirs     dirs
	children *children
	isServer bool

	name, ip    string
	bindAddress string // "" for all addresses
	port        string
	localPort   string // 6444: the API as parts on this host reach it
	disabled    map[string]bool

	// Of a server only.
	apiService                string       // first service address: the API as pods see it
	tokens                    sync.RWMutex // for both below, once the supervisor runs
	serverSecret, agentSecret string
	via                       *server                // the server it joins through, nil for none
	member                    atomic.Pointer[member] // of etcd, once it runs

	fail func(error) // ends the launcher
	ends []func()    // called in reverse order after the children have ended
}

// atEnd has something closed in good order, as far as the end leaves time for it.
func (n *node) atEnd(close func()) { n.ends = append(n.ends, close) }

// runNode reads the configuration, brings the node up and keeps it until a signal, or the end of a child.
func runNode(role string, args []string, bringUp func(context.Context, *node) error) error {
	cfg, err := load(role, args, os.Getenv)
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
	n, err := newNode(role, cfg)
	if err != nil {
		return err
	}
	if err := n.sayWhatIsMissing(); err != nil {
		return err
	}
	bin, err := n.dirs.unpack()
	if err != nil {
		return err
	}
	n.children, n.fail = newChildren(bin), end
	defer func() {
		n.children.stop()
		for _, close := range slices.Backward(n.ends) {
			close()
		}
	}()
	go func() {
		end(<-n.children.dead)
	}()
	if err := bringUp(ctx, n); err != nil {
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

func newNode(role string, cfg *settings) (*node, error) {
	n := &node{
		cfg:         cfg,
		dirs:        dirs{cfg.text("data-dir", "/var/lib/rancher/k3s")},
		isServer:    role == "server",
		bindAddress: cfg.text("bind-address", ""),
		port:        cfg.text("https-listen-port", "6443"),
		localPort:   cfg.text("lb-server-port", "6444"),
		name:        cfg.text("node-name", ""),
		ip:          first(cfg.list("node-ip"), ""),
		disabled:    map[string]bool{},
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
	if url := cfg.text("server", ""); url == "" && !n.isServer {
		return nil, errors.New("--server is required")
	} else if url != "" && !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("only https:// URLs are supported, invalid scheme in %s", url)
	}
	if !n.isServer {
		return n, nil
	}
	for _, name := range cfg.list("disable") {
		n.disabled[name] = true
	}
	n.network = network{
		ClusterCIDR: first(cfg.list("cluster-cidr"), "10.42.0.0/16"),
		ServiceCIDR: first(cfg.list("service-cidr"), "10.43.0.0/16"),
		Domain:      cfg.text("cluster-domain", "cluster.local"),
		Backend:     cfg.text("flannel-backend", "vxlan"),
		NoKubeProxy: cfg.on("disable-kube-proxy"),
	}
	_, services, err := net.ParseCIDR(n.ServiceCIDR)
	if err != nil {
		return nil, err
	}
	if services.IP.To4() == nil {
		return nil, errors.New("only IPv4 is in this stand-in")
	}
	n.apiService = nth(services.IP, 1)
	n.ClusterDNS = first(cfg.list("cluster-dns"), nth(services.IP, 10))
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
	if len(refuse) > 0 {
		return fmt.Errorf("not in this stand-in yet: %s (%s)", strings.Join(refuse, ", "), banner)
	}
	lines := []string{fmt.Sprintf("stand-in: %s is a %s", version, banner)}
	for _, name := range report {
		lines = append(lines, fmt.Sprintf("stand-in: %s accepted, not honoured", name))
	}
	if n.isServer {
		for _, part := range []string{"ccm", "metrics-server", "runtimes", "servicelb"} {
			if !n.disabled[part] {
				lines = append(lines, fmt.Sprintf("stand-in: packaged %s is absent", part))
			}
		}
		if !n.disabled[frontDoorName] {
			lines = append(lines, "stand-in: traefik comes with its HelmChartConfig, without helm and chart")
		}
		if n.Backend != "none" {
			lines = append(lines, fmt.Sprintf("stand-in: flannel-backend %s is a bridge and the kernel's VXLAN, not flannel", n.Backend))
		}
	}
	for _, line := range lines {
		logrus.Warn(line)
	}
	return n.dirs.report(lines)
}
