package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hearth.test/bed/cmd/k3s/payload"
)

const (
	containerdSocket = "/run/k3s/containerd/containerd.sock"
	nodePasswordFile = "/etc/rancher/node/password"
)

// dirs knows where k3s keeps its files below the data directory.
type dirs struct{ data string }

func (d dirs) server(parts ...string) string { return d.join("server", parts) }
func (d dirs) agent(parts ...string) string  { return d.join("agent", parts) }
func (d dirs) tls(parts ...string) string    { return d.join("server/tls", parts) }
func (d dirs) join(base string, parts []string) string {
	return filepath.Join(append([]string{d.data, base}, parts...)...)
}

// unpack makes sure that the payload of this file is at <data>/data/<hash> and gives its bin folder.
// `current` points there, `previous` to the one before: shims of running pods still run from it.
func (d dirs) unpack() (bin string, err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer self.Close()
	footer, err := payload.Find(self)
	if err != nil {
		return "", err
	}
	base := d.join("data", nil)
	target := filepath.Join(base, footer.Hash())
	current := filepath.Join(base, "current")
	if link, err := os.Readlink(current); err == nil && link == target {
		if _, err := os.Stat(target); err == nil {
			return filepath.Join(target, "bin"), nil
		}
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(base, ".lock"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // `k3s kubectl` beside the first start of the server: one of them unpacks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		if err := payload.Unpack(self, footer, target); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	if link, err := os.Readlink(current); err == nil && link != target {
		if err := relink(link, filepath.Join(base, "previous")); err != nil {
			return "", err
		}
	}
	return filepath.Join(target, "bin"), relink(target, current)
}

// relink points a symbolic link elsewhere in one step.
func relink(target, link string) error {
	if err := os.Remove(link + "-new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, link+"-new"); err != nil {
		return err
	}
	return os.Rename(link+"-new", link)
}

// writeFile replaces a file in one step, with the mode given whatever the umask, and makes its folder (0700).
func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = out.Write(content)
	err = errors.Join(err, out.Chmod(mode), out.Sync(), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}

// report appends lines to <data>/standin-report.txt, which the bed's scenarios show at their end; a line that
// is already there is not written again, or each restart would double the file.
func (d dirs) report(lines []string) error {
	path := filepath.Join(d.data, "standin-report.txt")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	content := string(old)
	for _, line := range lines {
		if !strings.Contains("\n"+content, "\n"+line+"\n") {
			content += line + "\n"
		}
	}
	if content == string(old) {
		return nil
	}
	if err := os.MkdirAll(d.data, 0o755); err != nil {
		return err
	}
	return writeFile(path, []byte(content), 0o644)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
