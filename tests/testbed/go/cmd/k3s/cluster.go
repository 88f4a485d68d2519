package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

var (
	nodeResource      = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	configMapResource = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	addonResource     = schema.GroupVersionResource{Group: "k3s.cattle.io", Version: "v1", Resource: "addons"}
)

// cluster applies objects of any kind.
type cluster struct {
	core    corev1client.CoreV1Interface
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func newCluster(config *rest.Config) (*cluster, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return &cluster{core, client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

func (c *cluster) mapping(gvk schema.GroupVersionKind) (*meta.RESTMapping, error) {
	mapping, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) { // a definition may have come since the last look
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	return mapping, err
}

// apply makes the object as given (server-side, conflicts overruled) and puts it into namespace "default" if
// it needs one and names none. It gives the object's UID.
func (c *cluster) apply(ctx context.Context, object *unstructured.Unstructured) (types.UID, error) {
	mapping, err := c.mapping(object.GroupVersionKind())
	if err != nil {
		return "", err
	}
	var target dynamic.ResourceInterface = c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if object.GetNamespace() == "" {
			object.SetNamespace("default")
		}
		target = c.dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace())
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return "", err
	}
	force := true
	made, err := target.Patch(ctx, object.GetName(), types.ApplyPatchType, raw,
		metav1.PatchOptions{FieldManager: "deploy@k3s", Force: &force})
	if err != nil {
		return "", wrapf(err, "%s %s", object.GetKind(), object.GetName())
	}
	return made.GetUID(), nil
}

// mergePatch changes the fields given and leaves the others.
func mergePatch(ctx context.Context, in dynamic.ResourceInterface, name string, fields map[string]any) error {
	raw, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	_, err = in.Patch(ctx, name, types.MergePatchType, raw, metav1.PatchOptions{})
	return err
}

// parseObjects reads the objects of a manifest, JSON or YAML, lists unfolded.
func parseObjects(content []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		raw, err := utilyaml.ToJSON(doc)
		if err != nil {
			return nil, err
		}
		if text := strings.TrimSpace(string(raw)); text == "null" || text == "" {
			continue // nothing but comments
		}
		object, _, err := unstructured.UnstructuredJSONScheme.Decode(raw, nil, nil)
		if err != nil {
			return nil, err
		}
		switch typed := object.(type) {
		case *unstructured.UnstructuredList:
			for i := range typed.Items {
				out = append(out, &typed.Items[i])
			}
		case *unstructured.Unstructured:
			out = append(out, typed)
		}
	}
}
