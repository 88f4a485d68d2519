package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const dialTimeout = 2 * time.Second

// balancer is 127.0.0.1:6444. On an agent it leads to any server that works; on a server to its own API server alone.
type balancer struct {
	file string // where the servers are remembered, "" for nowhere

	mu      sync.Mutex
	servers []*backend // in order of preference
	check   func(ctx context.Context, address string) error
}

type backend struct {
	address string
	failed  int // checks in a row
	open    map[net.Conn]bool
}

// known is the state file: the servers of the last time, of which one may be alive when the configured one is not.
type known struct {
	ServerURL       string   `json:"ServerURL"`
	ServerAddresses []string `json:"ServerAddresses"`
}

// startBalancer serves until the context ends. It knows the server given, and those in its file.
func startBalancer(ctx context.Context, port, file, server string) (*balancer, error) {
	b := &balancer{file: file}
	var last known
	if raw, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(raw, &last); err != nil {
			logrus.Warnf("%s: %v", file, err)
		}
	} else if file != "" && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b.set(append(last.ServerAddresses, server))
	listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return nil, err
	}
	go func() {
		<-ctx.Done()
		listener.Close()
	}()
	go func() {
		for ctx.Err() == nil {
			conn, err := listener.Accept()
			if err != nil {
				continue
			}
			go b.serve(conn)
		}
	}()
	return b, nil
}

// set replaces the list of servers; connections to those that stay go on.
func (b *balancer) set(addresses []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var next []*backend
	for _, address := range addresses {
		if slices.ContainsFunc(next, func(s *backend) bool { return s.address == address }) {
			continue
		}
		at := slices.IndexFunc(b.servers, func(s *backend) bool { return s.address == address })
		if at >= 0 {
			next = append(next, b.servers[at])
		} else {
			next = append(next, &backend{address: address, open: map[net.Conn]bool{}})
		}
	}
	b.servers = next
}

// update remembers the servers that a server told of; the configured one stays the last resort.
func (b *balancer) update(url, configured string, addresses []string) error {
	b.set(append(slices.Clone(addresses), configured))
	raw, err := json.MarshalIndent(known{url, addresses}, "", "  ")
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(b.file); err == nil && string(old) == string(raw) {
		return nil
	}
	logrus.Infof("Servers of this cluster: %v", addresses)
	return writeFile(b.file, raw, 0o600)
}

// preferred gives the servers, those that passed their last check first.
func (b *balancer) preferred() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := slices.Clone(b.servers)
	slices.SortStableFunc(out, func(x, y *backend) int { return min(x.failed, 1) - min(y.failed, 1) })
	return out
}

func (b *balancer) serve(client net.Conn) {
	defer client.Close()
	for _, one := range b.preferred() {
		server, err := net.DialTimeout("tcp", one.address, dialTimeout)
		if err != nil {
			b.judge(one, err)
			continue
		}
		b.mu.Lock()
		one.open[server] = true
		b.mu.Unlock()
		go func() {
			_, _ = io.Copy(server, client) // either end may close at any time
			server.Close()
		}()
		_, _ = io.Copy(client, server)
		server.Close()
		b.mu.Lock()
		delete(one.open, server)
		b.mu.Unlock()
		return
	}
}

// judge counts failures. After the second one, connections to that server are closed if another server is better: one
// that lost power never closes them itself.
func (b *balancer) judge(one *backend, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		one.failed = 0
		return
	}
	one.failed++
	better := slices.ContainsFunc(b.servers, func(s *backend) bool { return s.failed == 0 })
	if one.failed < 2 || !better {
		return
	}
	if len(one.open) > 0 {
		logrus.Warnf("Server %s fails (%v): closing %d connections to it", one.address, err, len(one.open))
	}
	for conn := range one.open {
		conn.Close()
	}
}

// watch checks every server every two seconds.
func (b *balancer) watch(ctx context.Context, check func(ctx context.Context, address string) error) {
	every(ctx, 2*time.Second, "load balancer", func() error {
		var wait sync.WaitGroup
		for _, one := range b.preferred() {
			wait.Go(func() {
				limited, cancel := context.WithTimeout(ctx, dialTimeout)
				defer cancel()
				b.judge(one, check(limited, one.address))
			})
		}
		wait.Wait()
		return nil
	})
}
