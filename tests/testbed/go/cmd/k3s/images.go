package main

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/sirupsen/logrus"
)

// archiveSuffixes of an image archive that can be read here. k3s also knows .tar.lz4, and lists of names (.txt).
var archiveSuffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz"}

const watchPause = 2 * time.Second

// seen is what the image directory's rules look at.
type seen struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
}

// importImages loads the payload's images and every archive in agent/images, before the kubelet starts, and
// goes on watching that folder.
func (n *node) importImages(ctx context.Context) error {
	// The marker lies in containerd's folder, so that it goes when the images go.
	marker := n.dirs.agent("containerd", "standin-images-"+filepath.Base(filepath.Dir(n.children.bin)))
	if !fileExists(marker) {
		packed, err := filepath.Glob(filepath.Join(filepath.Dir(n.children.bin), "images", "*.tar"))
		if err != nil {
			return err
		}
		for _, path := range packed {
			if err := n.importArchive(ctx, path); err != nil {
				return err
			}
		}
		if err := writeFile(marker, nil, 0o600); err != nil {
			return err
		}
	}
	folder := n.dirs.agent("images")
	now, err := archives(folder)
	if err != nil {
		return err
	}
	cachePath := filepath.Join(folder, ".cache.json")
	cache, useCache, err := readCache(cachePath)
	if err != nil {
		return err
	}
	for _, path := range sortedKeys(now) {
		if old, known := cache[path]; known && old.Size == now[path].Size && old.ModTime.Equal(now[path].ModTime) {
			continue
		}
		if err := n.importArchive(ctx, path); err != nil {
			logrus.Errorf("Error encountered while importing %s: %v", path, err) // the others still count
			delete(cache, path)
			continue
		}
		cache[path] = now[path]
	}
	if useCache {
		raw, err := json.Marshal(cache)
		if err != nil {
			return err
		}
		if err := writeFile(cachePath, raw, 0o644); err != nil {
			return err
		}
	}
	go n.watchImages(ctx, folder, now)
	return nil
}

// readCache gives what an earlier start imported. The file's existence is the switch.
func readCache(path string) (cache map[string]seen, use bool, err error) {
	cache = map[string]seen{}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return cache, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if len(bytes.TrimSpace(raw)) > 0 {
		if err := json.Unmarshal(raw, &cache); err != nil {
			logrus.Warnf("%s is not readable, importing everything: %v", path, err)
			cache = map[string]seen{}
		}
	}
	return cache, true, nil
}

func archives(folder string) (map[string]seen, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	out := map[string]seen{}
	for _, entry := range entries {
		path := filepath.Join(folder, entry.Name())
		info, err := os.Stat(path)
		if err != nil || info.IsDir() {
			continue // gone between listing and looking
		}
		if slices.ContainsFunc(archiveSuffixes, func(s string) bool { return strings.HasSuffix(path, s) }) {
			out[path] = seen{info.Size(), info.ModTime()}
		}
	}
	return out, nil
}

// changed applies the rule for archives that appear while the server runs: a new name is imported; a known one
// only if its size differs AND it is newer (contract §0.7). A removed file is forgotten.
func changed(before, now map[string]seen) []string {
	var out []string
	for _, path := range sortedKeys(now) {
		old, known := before[path]
		if !known || now[path].Size != old.Size && now[path].ModTime.After(old.ModTime) {
			out = append(out, path)
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (n *node) watchImages(ctx context.Context, folder string, before map[string]seen) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
		now, err := archives(folder)
		if err != nil {
			logrus.Errorf("Image watcher: %v", err)
			continue
		}
		for _, path := range changed(before, now) {
			if err := n.importArchive(ctx, path); err != nil {
				logrus.Errorf("Failed to import %s: %v", path, err)
			}
		}
		before = now
	}
}

// importArchive loads one archive into containerd's k8s.io namespace. The two labels keep the kubelet's
// garbage collector away from its images.
func (n *node) importArchive(ctx context.Context, path string) error {
	started := time.Now()
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	plain, err := decompress(path, file)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(n.children.bin, "ctr"), "--address", containerdSocket,
		"--namespace", "k8s.io", "images", "import", "--local",
		"--label", "io.cattle.k3s.pinned=pinned", "--label", "io.cri-containerd.pinned=pinned", "-")
	cmd.Stdin, cmd.Env = plain, n.children.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(string(out)))
	}
	logrus.Infof("Imported images from %s in %s", path, time.Since(started).Round(time.Millisecond))
	return nil
}

func decompress(path string, file io.Reader) (io.Reader, error) {
	switch {
	case strings.HasSuffix(path, "gz"):
		return gzip.NewReader(file)
	case strings.HasSuffix(path, "zst"):
		return zstd.NewReader(file)
	case strings.HasSuffix(path, "bz2"), strings.HasSuffix(path, "tbz"):
		return bzip2.NewReader(file), nil
	}
	return file, nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
