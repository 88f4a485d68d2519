package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/client-go/rest"
)

func runAgent(args []string) error {
	return runNode("agent", args, func(ctx context.Context, n *node) error { return n.startAgent(ctx) })
}

// startAgent joins, however long that takes: an agent waits for its server and never gives up, as with k3s.
func (n *node) startAgent(ctx context.Context) error {
	if !n.cfg.isSet("token") && !n.cfg.isSet("token-file") {
		return errors.New("--token is required")
	}
	token, err := givenToken(ctx, n.cfg, "token")
	if err != nil {
		return err
	}
	first, err := url.Parse(n.cfg.text("server", ""))
	if err != nil {
		return err
	}
	configured := first.Host
	if first.Port() == "" {
		configured = net.JoinHostPort(first.Hostname(), "443")
	}
	lb, err := startBalancer(ctx, n.localPort, n.dirs.agent("etc", "k3s-agent-load-balancer.json"), configured)
	if err != nil {
		return err
	}
	cluster, err := n.join(ctx, token)
	if err != nil {
		return err
	}
	learn := func() error {
		var servers []string
		if err := cluster.get(ctx, "/v1-k3s/apiservers", &servers); err != nil || len(servers) == 0 {
			return err
		}
		return lb.update(first.String(), configured, servers)
	}
	go every(ctx, 10*time.Second, "list of servers", learn)
	go lb.watch(ctx, func(ctx context.Context, address string) error {
		one := *cluster
		one.url = "https://" + address
		_, err := one.call(ctx, http.MethodGet, "/v1-k3s/readyz", nil)
		return err
	})
	if err := n.writeKubeconfigs(); err != nil {
		return err
	}
	own := n.restConfig(n.dirs.agent("client-kubelet"))
	if err := n.waitAPI(ctx, own); err != nil {
		return err
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	cl, err := newCluster(own)
	if err != nil {
		return err
	}
	if err := n.startNode(ctx, cl); err != nil {
		return err
	}
	return n.ready()
}

// join fetches configuration and certificates through the load balancer, so from any server that this host knows.
func (n *node) join(ctx context.Context, token string) (*server, error) {
	password, err := nodePassword()
	if err != nil {
		return nil, err
	}
	for {
		cluster, err := reach(ctx, n.localURL(), token, "node")
		if err == nil {
			_, err = cluster.call(ctx, http.MethodGet, "/v1-k3s/config", nil)
		}
		pause := 2 * time.Second
		if err != nil {
			logrus.Errorf("Failed to validate connection to cluster at %s: %v", n.localURL(), err)
		} else {
			cluster.headers = map[string]string{headerName: n.name, headerPassword: password, headerIP: n.ip}
			if err = n.fetch(ctx, cluster); err == nil {
				return cluster, nil
			}
			logrus.Infof("Waiting to retrieve agent configuration; server is not ready: %v", err)
			pause = 5*time.Second + rand.N(5*time.Second)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// fetch takes from the server what ensurePKI makes on a server.
func (n *node) fetch(ctx context.Context, from *server) error {
	var given offer
	if err := from.get(ctx, "/v1-k3s/config", &given); err != nil {
		return err
	}
	n.network = given.Network
	for _, name := range []string{"client-ca.crt", "server-ca.crt"} {
		raw, err := from.call(ctx, http.MethodGet, "/v1-k3s/"+name, nil)
		if err != nil {
			return err
		}
		if err := writeFile(n.dirs.agent(name), raw, 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"client-kubelet", "serving-kubelet", "client-kube-proxy"} {
		if err := from.certify(ctx, n.dirs.agent(name), name+".crt"); err != nil {
			return err
		}
	}
	return nil
}

// restConfig is the API on this host, with a certificate (path without .crt and .key).
func (n *node) restConfig(cert string) *rest.Config {
	return &rest.Config{
		Host: n.localURL(),
		QPS:  -1, // no client-side limit: one launcher, one API server
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: n.dirs.agent("server-ca.crt"), CertFile: cert + ".crt", KeyFile: cert + ".key",
		},
	}
}

// ready reports to systemd; contract §4 says when.
func (n *node) ready() error {
	if err := notifyReady(); err != nil {
		return wrapf(err, "systemd notification")
	}
	logrus.Infof("k3s is up and running (stand-in %s)", version)
	return nil
}
