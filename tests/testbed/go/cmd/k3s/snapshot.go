package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"
)

// snapshotOrder is what `k3s etcd-snapshot` asks of the running server.
type snapshotOrder struct {
	Do        string // save, ls, delete or prune
	Name      string // first part of the file name
	Names     []string
	Retention int
}

// snapshotFile is one entry of `ls`, in the form of k3s's ETCDSnapshotFile.
type snapshotFile struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		SnapshotName string `json:"snapshotName"`
		NodeName     string `json:"nodeName"`
		Location     string `json:"location"`
	} `json:"spec"`
	Status struct {
		Size         string    `json:"size"`
		CreationTime time.Time `json:"creationTime"`
		ReadyToUse   bool      `json:"readyToUse"`
	} `json:"status"`
}

type snapshotList struct {
	Kind       string         `json:"kind"`
	APIVersion string         `json:"apiVersion"`
	Metadata   struct{}       `json:"metadata"`
	Items      []snapshotFile `json:"items"`
}

func (n *node) snapshotDir() string {
	return n.cfg.text("etcd-snapshot-dir", n.dirs.server("db", "snapshots"))
}

// saveSnapshot has etcd write its data into a file, which has its name only when it is whole.
func (n *node) saveSnapshot(ctx context.Context, base string) (string, error) {
	if err := os.MkdirAll(n.snapshotDir(), 0o700); err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s-%s-%d", base, n.name, time.Now().Unix())
	info := transport.TLSInfo{CertFile: n.dirs.tls("etcd/client.crt"), KeyFile: n.dirs.tls("etcd/client.key"),
		TrustedCAFile: n.dirs.tls("etcd/server-ca.crt")}
	config, err := info.ClientConfig()
	if err != nil {
		return "", err
	}
	_, err = snapshot.SaveWithVersion(ctx, zap.NewNop(), clientv3.Config{Endpoints: []string{localEtcd}, TLS: config},
		filepath.Join(n.snapshotDir(), name))
	return name, err
}

// snapshots lists this server's files, the oldest first.
func (n *node) snapshots() ([]snapshotFile, error) {
	entries, err := os.ReadDir(n.snapshotDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := []snapshotFile{}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || entry.IsDir() || strings.HasSuffix(entry.Name(), ".part") {
			continue
		}
		var one snapshotFile
		one.Metadata.Name, one.Spec.SnapshotName, one.Spec.NodeName = "local-"+entry.Name(), entry.Name(), n.name
		one.Spec.Location = "file://" + filepath.Join(n.snapshotDir(), entry.Name())
		one.Status.Size, one.Status.CreationTime, one.Status.ReadyToUse = fmt.Sprint(info.Size()), info.ModTime().UTC().Truncate(time.Second), true
		out = append(out, one)
	}
	slices.SortStableFunc(out, func(a, b snapshotFile) int { return a.Status.CreationTime.Compare(b.Status.CreationTime) })
	return out, nil
}

// prune deletes the oldest snapshots of that name beyond the number to keep.
func (n *node) pruneSnapshots(base string, keep int) ([]string, error) {
	all, err := n.snapshots()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, one := range all {
		if strings.HasPrefix(one.Spec.SnapshotName, base+"-"+n.name+"-") {
			names = append(names, one.Spec.SnapshotName)
		}
	}
	names = names[:max(0, len(names)-keep)]
	for _, name := range names {
		if err := os.Remove(filepath.Join(n.snapshotDir(), name)); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// scheduleSnapshots saves and prunes by the configured cron line.
func (n *node) scheduleSnapshots(ctx context.Context) error {
	if n.cfg.on("etcd-disable-snapshots") {
		return nil
	}
	keep, err := strconv.Atoi(n.cfg.text("etcd-snapshot-retention", "5"))
	if err != nil {
		return err
	}
	base := n.cfg.text("etcd-snapshot-name", "etcd-snapshot")
	jobs := cron.New(cron.WithChain(cron.SkipIfStillRunning(cron.DiscardLogger)))
	_, err = jobs.AddFunc(n.cfg.text("etcd-snapshot-schedule-cron", "0 */12 * * *"), func() {
		name, err := n.saveSnapshot(ctx, base)
		if err == nil {
			logrus.Infof("Snapshot %s saved.", name)
			_, err = n.pruneSnapshots(base, keep)
		}
		if err != nil && ctx.Err() == nil {
			logrus.Errorf("Failed to take etcd snapshot: %v", err)
		}
	})
	if err != nil {
		return wrapf(err, "etcd-snapshot-schedule-cron")
	}
	jobs.Start()
	go func() {
		<-ctx.Done()
		jobs.Stop()
	}()
	return nil
}

// dbSnapshot carries out an order. It gives the names of what was saved or deleted, or the list.
func (s *supervisor) dbSnapshot(w http.ResponseWriter, r *http.Request) {
	var order snapshotOrder
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !s.usesEtcd() {
		http.Error(w, errNoEtcd.Error(), http.StatusBadRequest)
		return
	}
	if slices.ContainsFunc(append(order.Names, order.Name), func(name string) bool { return strings.Contains(name, "/") }) {
		http.Error(w, "snapshot names hold no /", http.StatusBadRequest)
		return
	}
	switch order.Do {
	case "save":
		name, err := s.saveSnapshot(r.Context(), order.Name)
		answer(w, []string{name}, err)
	case "ls":
		files, err := s.snapshots()
		answer(w, files, err)
	case "prune":
		names, err := s.pruneSnapshots(order.Name, order.Retention)
		answer(w, names, err)
	case "delete":
		deleted := []string{}
		for _, name := range order.Names {
			if err := os.Remove(filepath.Join(s.snapshotDir(), name)); err == nil {
				deleted = append(deleted, name)
			} else if !errors.Is(err, os.ErrNotExist) {
				answer(w, nil, err)
				return
			}
		}
		answer(w, deleted, nil)
	default:
		http.Error(w, "unknown order", http.StatusBadRequest)
	}
}

// runSnapshot is `k3s etcd-snapshot`. What it did goes to stderr; stdout is for `ls` alone.
func runSnapshot(args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		args = append([]string{"save"}, args...)
	}
	order := snapshotOrder{Do: args[0]}
	if order.Do == "list" {
		order.Do = "ls"
	}
	if !slices.Contains([]string{"save", "ls", "delete", "prune"}, order.Do) {
		return fmt.Errorf("no help topic for %q", order.Do)
	}
	flags := flag.NewFlagSet("k3s etcd-snapshot "+order.Do, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	output := "table"
	for _, name := range []string{"o", "output"} {
		flags.StringVar(&output, name, output, "")
	}
	flags.StringVar(&order.Name, "name", "on-demand", "")
	for _, name := range []string{"etcd-snapshot-retention", "snapshot-retention"} {
		flags.IntVar(&order.Retention, name, 5, "")
	}
	// Accepted because the server whose configuration holds them does the work; a different value here would have no effect.
	for _, name := range []string{"data-dir", "d", "etcd-snapshot-dir", "dir"} {
		flags.String(name, "", "")
	}
	rest, err := readConfig(defaultConfig, false)
	if err != nil {
		return err
	}
	for _, arg := range rest {
		if name, _, _ := strings.Cut(arg, "="); !strings.HasPrefix(name, "--etcd-s") && name != "--data-dir" {
			logrus.Warnf("Unknown flag %s found in config.yaml, skipping", name)
		}
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	order.Names = flags.Args()
	var out json.RawMessage
	if err := askServer(http.MethodPost, "/db/snapshot", order, &out); err != nil {
		return err
	}
	if order.Do == "ls" {
		return printSnapshots(os.Stdout, output, out)
	}
	var names []string
	if err := json.Unmarshal(out, &names); err != nil {
		return err
	}
	done := "deleted"
	if order.Do == "save" {
		done = "saved"
	}
	for _, name := range names {
		logrus.Infof("Snapshot %s %s.", name, done)
	}
	for _, name := range order.Names {
		if !slices.Contains(names, name) {
			logrus.Warnf("Snapshot %s not found.", name)
		}
	}
	return nil
}

// askServer sends an order to the server on this host, with its own token.
func askServer(method, path string, order, into any) error {
	d := dirs{dataDirOf(defaultConfig)}
	if dir := os.Getenv("K3S_DATA_DIR"); dir != "" {
		d.data = dir
	}
	token, err := os.ReadFile(d.server("token"))
	if err != nil {
		return wrapf(err, "no server runs here")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s, err := reach(ctx, "https://127.0.0.1:6443", string(token), "server")
	if err != nil {
		return err
	}
	s.client.Timeout = 2 * time.Minute
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	raw, err := s.call(ctx, method, path, body)
	if err != nil {
		return err
	}
	return json.NewDecoder(bytes.NewReader(raw)).Decode(into)
}

func printSnapshots(to io.Writer, form string, raw json.RawMessage) error {
	list := snapshotList{Kind: "ETCDSnapshotFileList", APIVersion: "k3s.cattle.io/v1"}
	if err := json.Unmarshal(raw, &list.Items); err != nil {
		return err
	}
	switch form {
	case "json":
		return json.NewEncoder(to).Encode(list)
	case "yaml":
		text, err := yaml.Marshal(list)
		if err == nil {
			_, err = to.Write(text)
		}
		return err
	}
	table := tabwriter.NewWriter(to, 0, 0, 1, ' ', 0)
	fmt.Fprint(table, "Name\tLocation\tSize\tCreated\n")
	for _, one := range list.Items {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", one.Spec.SnapshotName, one.Spec.Location, one.Status.Size, one.Status.CreationTime.Format(time.RFC3339))
	}
	return table.Flush()
}
