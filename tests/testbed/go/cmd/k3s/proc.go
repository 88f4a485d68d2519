package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// children are the component processes. k3s has them in one process; here each is tied to the launcher: the
// kernel kills them when it dies, and the launcher ends when one of them does. Only containerd's shims, which
// detach themselves, and so the pods, live on.
type children struct {
	bin     string // folder of the payload's programs
	env     []string
	dead    chan error // the first child that ended by itself
	starter chan func()

	mu       sync.Mutex
	running  []*child
	stopping bool
}

type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

func newChildren(bin string) *children {
	c := &children{bin: bin, dead: make(chan error, 1), starter: make(chan func())}
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		// A child that could notify systemd would report the unit ready for us. A token is no child's business.
		if name != "PATH" && name != "NOTIFY_SOCKET" && !strings.HasPrefix(name, "K3S_") {
			c.env = append(c.env, entry)
		}
	}
	// bin first: containerd takes its shim from there, and reset finds shims by that path. The tools in aux
	// come last, so that what the host has wins, as with k3s.
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	c.env = append(c.env, "PATH="+bin+":"+path+":"+filepath.Join(bin, "aux"))
	go func() {
		// The kernel sends a child its parent-death signal when the thread that forked it ends, so all
		// are forked from one thread that lives as long as the process.
		runtime.LockOSThread()
		for start := range c.starter {
			start()
		}
	}()
	return c
}

// start runs a program of the payload. logFile "" sends its output to the launcher's, that is to the journal.
func (c *children) start(name, logFile string, argv ...string) error {
	cmd := exec.Command(filepath.Join(c.bin, argv[0]), argv[1:]...)
	cmd.Env = c.env
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if logFile != "" {
		log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return context.Canceled
	}
	started := make(chan error)
	c.starter <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return wrapf(err, "%s", name)
	}
	logrus.Infof("Running %s %s", name, strings.Join(argv[1:], " "))
	one := &child{name, cmd, make(chan struct{})}
	c.running = append(c.running, one)
	go func() {
		err := cmd.Wait()
		close(one.done)
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.stopping {
			c.stopping = true
			c.dead <- fmt.Errorf("%s exited: %w", name, orExit0(err))
		}
	}()
	return nil
}

func orExit0(err error) error {
	if err == nil {
		return fmt.Errorf("exit status 0")
	}
	return err
}

// run waits for a tool of the host or, where it has none, of the payload.
func (c *children) run(name string, args ...string) error {
	script := append([]string{"-c", `exec "$0" "$@"`, name}, args...) // the shell looks in the PATH of the children
	cmd := exec.Command("/bin/sh", script...)
	cmd.Env = c.env
	said, err := cmd.CombinedOutput()
	return wrapf(err, "%s: %s", name, strings.TrimSpace(string(said)))
}

// stopGrace is short for what none of them loses when killed: the API server would wait a minute for its watches,
// and its data is kine's.
const stopGrace = 2 * time.Second

// stop ends the children in reverse order, so that none loses the one it talks to before it is gone itself.
func (c *children) stop() {
	c.mu.Lock()
	c.stopping = true
	running := c.running
	c.mu.Unlock()
	for i := len(running) - 1; i >= 0; i-- {
		one := running[i]
		if err := one.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			continue // it has ended
		}
		select {
		case <-one.done:
		case <-time.After(stopGrace):
			logrus.Infof("%s did not stop within %s, killing it", one.name, stopGrace)
			if err := one.cmd.Process.Kill(); err == nil {
				<-one.done
			}
		}
	}
}

// waitFor polls until try gives nil. It ends early when the context does; the last error tells why it waited.
func waitFor(ctx context.Context, what string, pause time.Duration, try func() error) error {
	started, told := time.Now(), time.Now()
	for {
		err := try()
		if err == nil {
			logrus.Infof("%s after %s", what, time.Since(started).Round(10*time.Millisecond))
			return nil
		}
		if time.Since(told) > 5*time.Second {
			logrus.Infof("Waiting for: %s: %v", what, err)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %v)", what, ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

func dialUnix(path string) error {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// notifyReady tells systemd that the unit is active. Without systemd it does nothing.
func notifyReady() error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	if strings.HasPrefix(address, "@") {
		address = "\x00" + address[1:]
	}
	conn, err := net.Dial("unixgram", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}

// arguments merges a component's own flags with those of the configuration ("flag=value" without dashes); a
// flag from the configuration replaces ours.
func arguments(ours, extra []string) []string {
	given := map[string]bool{}
	for _, arg := range extra {
		name, _, _ := strings.Cut(arg, "=")
		given[strings.TrimLeft(name, "-")] = true
	}
	var out []string
	for _, arg := range ours {
		if name, _, _ := strings.Cut(arg, "="); !given[name] {
			out = append(out, "--"+arg)
		}
	}
	for _, arg := range extra {
		out = append(out, "--"+strings.TrimLeft(arg, "-"))
	}
	return out
}
