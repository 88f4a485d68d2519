package main

import (
	"context"
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// packaged holds crds.yaml, which is applied before anything else, and the components that become files in the
// manifests directory at every start. *.in is filled in before it is YAML.
//
//go:embed packaged/*.yaml packaged/*.in
var packaged embed.FS

const (
	scanEvery      = 15 * time.Second
	ownerLabel     = "objectset.rio.cattle.io/hash"
	ownerName      = "objectset.rio.cattle.io/owner-name"
	kindAnnotation = "addon.k3s.cattle.io/gvks" // kinds last applied, so that the last object of a kind can be pruned
	kindSeparator  = ";"
)

// deployer applies the files of the manifests directory (contract §3) and keeps CoreDNS's list of nodes.
type deployer struct {
	cluster  *cluster
	folder   string
	disabled map[string]bool
	modTimes map[string]time.Time // of files applied by this process
}

// deployPackaged applies the definitions, writes the packaged files and starts the 15 s scan; the first pass is
// forced, so every start reapplies every file whatever its checksum.
func (n *node) deployPackaged(ctx context.Context, cl *cluster) error {
	raw, err := packaged.ReadFile("packaged/crds.yaml")
	if err != nil {
		return err
	}
	definitions, err := parseObjects(raw)
	if err != nil {
		return err
	}
	for _, definition := range definitions {
		if _, err := cl.apply(ctx, definition); err != nil {
			return err
		}
	}
	d := &deployer{cluster: cl, folder: n.dirs.server("manifests"), disabled: n.disabled, modTimes: map[string]time.Time{}}
	if err := n.stagePackaged(d.folder); err != nil {
		return err
	}
	if !n.disabled[frontDoorName] {
		door := &frontDoor{cluster: cl, address: n.ip}
		go door.watch(ctx)
	}
	go func() {
		force := true
		for {
			if err := d.scan(ctx, force); err != nil {
				logrus.Errorf("Failed to process config: %v", err)
			} else {
				force = false
			}
			if err := d.nodeHosts(ctx); err != nil && ctx.Err() == nil {
				logrus.Errorf("Failed to update CoreDNS NodeHosts: %v", err)
			}
			pause := scanEvery
			if len(d.modTimes) == 0 {
				pause = time.Second // the Addon definition is not served yet
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}()
	return nil
}

// stagePackaged writes the packaged components, except those disabled or skipped.
func (n *node) stagePackaged(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	fill := strings.NewReplacer(
		"%{CLUSTER_DNS}%", n.ClusterDNS,
		"%{CLUSTER_DOMAIN}%", n.Domain,
		"%{DEFAULT_LOCAL_STORAGE_PATH}%", n.cfg.text("default-local-storage-path", filepath.Join(n.dirs.data, "storage")),
	)
	for _, name := range []string{"coredns.yaml", "local-storage.yaml", "traefik.yaml"} {
		path := filepath.Join(folder, name)
		if n.disabled[strings.TrimSuffix(name, ".yaml")] || fileExists(path+".skip") {
			continue
		}
		raw, err := n.packagedFile(name)
		if err != nil {
			return err
		}
		if err := writeFile(path, []byte(fill.Replace(string(raw))), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) packagedFile(name string) ([]byte, error) {
	if name == "traefik.yaml" {
		return n.frontDoorManifest()
	}
	return packaged.ReadFile("packaged/" + name)
}

// scan looks at every file once. One bad file does not hold up the others.
func (d *deployer) scan(ctx context.Context, force bool) error {
	files := map[string]fs.FileInfo{}
	err := filepath.WalkDir(d.folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil // gone between listing and looking
		}
		files[path] = info
		return err
	})
	if err != nil {
		return err
	}
	skipped := map[string]bool{}
	for path := range files {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".skip"); ok {
			skipped[name] = true
		}
	}
	var errs []error
	for _, path := range sortedKeys(files) {
		name := filepath.Base(path)
		if !isManifest(name) {
			continue
		}
		if isDisabled(d.folder, path, d.disabled) {
			errs = append(errs, wrapf(d.remove(ctx, path), "failed to delete %s", path))
			continue
		}
		modTime := files[path].ModTime()
		if skipped[name] || !force && modTime.Equal(d.modTimes[path]) {
			continue
		}
		if err := d.deploy(ctx, path, force); err != nil {
			errs = append(errs, fmt.Errorf("failed to process %s: %w", path, err))
			continue
		}
		d.modTimes[path] = modTime
	}
	return errors.Join(errs...)
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	return slices.Contains([]string{".json", ".yaml", ".yml"}, strings.ToLower(filepath.Ext(name)))
}

// isDisabled matches a file by its name without suffix, or by a folder above it.
func isDisabled(base, path string, disabled map[string]bool) bool {
	rel, err := filepath.Rel(base, path)
	if err != nil {
		return false
	}
	parts := strings.Split(rel, string(filepath.Separator))
	name := parts[len(parts)-1]
	parts[len(parts)-1] = strings.TrimSuffix(name, filepath.Ext(name))
	return slices.ContainsFunc(parts, func(part string) bool { return disabled[part] })
}

// addonName is the text before the first dot, so a.yaml and a.b.yaml share an Addon. The API server refuses
// names that are no DNS labels, such as those with an underscore.
func addonName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return name
}

func ownerHash(addon string) string {
	sum := sha1.Sum([]byte("k3s.cattle.io/v1, Kind=Addon kube-system " + addon)) // a label value, not a safeguard
	return hex.EncodeToString(sum[:])
}

func (d *deployer) deploy(ctx context.Context, path string, force bool) error {
	addon, err := d.addon(ctx, path)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	checksum := caHash(content)
	if old, _, _ := unstructured.NestedString(addon.Object, "spec", "checksum"); !force && old == checksum {
		return nil
	}
	objects, err := parseObjects(content)
	if err != nil {
		return err
	}
	if err := d.applyOwned(ctx, addon, objects); err != nil {
		return err
	}
	return d.patchAddon(ctx, addon.GetName(), map[string]any{"source": path, "checksum": checksum}, kindsOf(objects))
}

// remove deletes what a disabled file made, the file and its Addon.
func (d *deployer) remove(ctx context.Context, path string) error {
	addon, err := d.addon(ctx, path)
	if err != nil {
		return err
	}
	if err := d.prune(ctx, addon, nil); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	err = d.cluster.dynamic.Resource(addonResource).Namespace("kube-system").Delete(ctx, addon.GetName(), metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// addon gets or makes the Addon object of a file.
func (d *deployer) addon(ctx context.Context, path string) (*unstructured.Unstructured, error) {
	addons := d.cluster.dynamic.Resource(addonResource).Namespace("kube-system")
	found, err := addons.Get(ctx, addonName(path), metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return found, err
	}
	return addons.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k3s.cattle.io/v1", "kind": "Addon",
		"metadata": map[string]any{"name": addonName(path), "namespace": "kube-system"},
		"spec":     map[string]any{"source": path, "checksum": ""},
	}}, metav1.CreateOptions{})
}

func (d *deployer) patchAddon(ctx context.Context, name string, spec map[string]any, kinds string) error {
	return mergePatch(ctx, d.cluster.dynamic.Resource(addonResource).Namespace("kube-system"), name, map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{kindAnnotation: kinds}},
		"spec":     spec,
	})
}

func kindsOf(objects []*unstructured.Unstructured) string {
	kinds := map[string]bool{}
	for _, object := range objects {
		kinds[object.GroupVersionKind().String()] = true
	}
	return strings.Join(sortedKeys(kinds), kindSeparator)
}

// applyOwned applies the objects, marks them as the Addon's and prunes what the Addon owned before. Namespaces
// and definitions go first, whatever their place in the file.
func (d *deployer) applyOwned(ctx context.Context, addon *unstructured.Unstructured, objects []*unstructured.Unstructured) error {
	first := func(object *unstructured.Unstructured) int {
		if slices.Contains([]string{"Namespace", "CustomResourceDefinition"}, object.GetKind()) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return first(a) - first(b) })
	keep := map[types.UID]bool{}
	var errs []error
	for _, object := range objects {
		labels, annotations := object.GetLabels(), object.GetAnnotations()
		if labels == nil {
			labels = map[string]string{}
		}
		if annotations == nil {
			annotations = map[string]string{}
		}
		labels[ownerLabel] = ownerHash(addon.GetName())
		annotations[ownerName] = addon.GetName()
		object.SetLabels(labels)
		object.SetAnnotations(annotations)
		uid, err := d.cluster.apply(ctx, object)
		errs = append(errs, err)
		keep[uid] = true
	}
	if err := errors.Join(errs...); err != nil {
		return err // pruning now could take what failed to apply
	}
	return d.prune(ctx, addon, keep)
}

// prune deletes the Addon's objects other than those to keep, among the kinds it had when last applied.
func (d *deployer) prune(ctx context.Context, addon *unstructured.Unstructured, keep map[types.UID]bool) error {
	var errs []error
	for _, text := range strings.Split(addon.GetAnnotations()[kindAnnotation], kindSeparator) {
		gvk, ok := parseKind(text)
		if !ok {
			continue
		}
		mapping, err := d.cluster.mapping(gvk)
		if meta.IsNoMatchError(err) {
			continue // the definition is gone, and its objects with it
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list, err := d.cluster.dynamic.Resource(mapping.Resource).List(ctx,
			metav1.ListOptions{LabelSelector: ownerLabel + "=" + ownerHash(addon.GetName())})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, item := range list.Items {
			if keep[item.GetUID()] {
				continue
			}
			logrus.Infof("Deleting %s %s/%s, no longer in addon %s", gvk.Kind, item.GetNamespace(), item.GetName(), addon.GetName())
			background := metav1.DeletePropagationBackground
			err := d.cluster.dynamic.Resource(mapping.Resource).Namespace(item.GetNamespace()).Delete(ctx, item.GetName(),
				metav1.DeleteOptions{PropagationPolicy: &background})
			if !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// parseKind reads "group/version, Kind=kind", the form that kindsOf writes.
func parseKind(text string) (schema.GroupVersionKind, bool) {
	version, kind, ok := strings.Cut(text, ", Kind=")
	if !ok {
		return schema.GroupVersionKind{}, false
	}
	gv, err := schema.ParseGroupVersion(strings.TrimPrefix(version, "/"))
	return gv.WithKind(kind), err == nil
}

// nodeHosts writes every node's address and name into the key NodeHosts of ConfigMap coredns, as k3s does.
func (d *deployer) nodeHosts(ctx context.Context) error {
	if d.disabled["coredns"] {
		return nil
	}
	list, err := d.cluster.dynamic.Resource(nodeResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var lines []string
	for _, item := range list.Items {
		addresses, _, _ := unstructured.NestedSlice(item.Object, "status", "addresses")
		for _, address := range addresses {
			if entry, ok := address.(map[string]any); ok && entry["type"] == "InternalIP" {
				lines = append(lines, fmt.Sprintf("%v %s\n", entry["address"], item.GetName()))
			}
		}
	}
	slices.Sort(lines)
	maps := d.cluster.dynamic.Resource(configMapResource).Namespace("kube-system")
	current, err := maps.Get(ctx, "coredns", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // not applied yet, or skipped
	}
	if err != nil {
		return err
	}
	text := strings.Join(lines, "")
	if old, found, _ := unstructured.NestedString(current.Object, "data", "NodeHosts"); found && old == text {
		return nil
	}
	return mergePatch(ctx, maps, "coredns", map[string]any{"data": map[string]string{"NodeHosts": text}})
}
