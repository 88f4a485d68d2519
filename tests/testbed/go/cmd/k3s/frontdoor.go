package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// frontDoor takes the place of three parts of k3s, for one chart: helm-controller, Traefik's chart, servicelb.
//
// It makes of the HelmChartConfig kube-system/traefik what that chart would make of it. A value that it does not act on
// is an error that is logged, and nothing is changed: a setting of a role that went nowhere must not look as if it counted.
// Without a HelmChartConfig there is no Traefik, since the payload has no image of it; k3s installs its own then.
type frontDoor struct {
	cluster *cluster
	address string // of this node: where the load balancer listens
	done    string // resource version that was carried out, or refused
}

var (
	chartConfigResource = schema.GroupVersionResource{Group: "helm.cattle.io", Version: "v1", Resource: "helmchartconfigs"}
	serviceResource     = schema.GroupVersionResource{Version: "v1", Resource: "services"}
)

const (
	frontDoorEvery = 2 * time.Second
	frontDoorName  = "traefik"
	definitions    = "traefik-crd.yaml" // in the payload's folder manifests
)

// chartArguments are the flags that the chart gives with k3s's values (chart 39.0.7), before those of additionalArguments.
var chartArguments = []string{
	"--entryPoints.metrics.address=:9100/tcp",
	"--entryPoints.traefik.address=:8080/tcp",
	"--entryPoints.web.address=:8000/tcp",
	"--entryPoints.websecure.address=:8443/tcp",
	"--api.dashboard=true",
	"--ping=true",
	"--metrics.prometheus=true",
	"--metrics.prometheus.entrypoint=metrics",
	"--providers.kubernetescrd",
	"--providers.kubernetescrd.allowEmptyServices=true",
	"--providers.kubernetesingress",
	"--providers.kubernetesingress.allowEmptyServices=true",
	"--providers.kubernetesingress.ingressendpoint.publishedservice=kube-system/traefik",
	"--entryPoints.websecure.http.tls=true",
	"--log.level=INFO",
}

// chartValues are the values that the stand-in acts on, with names as in the chart.
type chartValues struct {
	Image struct {
		Registry   string `json:"registry"`
		Repository string `json:"repository"`
		Digest     string `json:"digest"`
	} `json:"image"`
	Deployment struct {
		Replicas int64 `json:"replicas"`
		Grace    int64 `json:"terminationGracePeriodSeconds"`
	} `json:"deployment"`
	UpdateStrategy      map[string]any `json:"updateStrategy"`
	PodDisruptionBudget struct {
		Enabled        bool  `json:"enabled"`
		MaxUnavailable int64 `json:"maxUnavailable"`
	} `json:"podDisruptionBudget"`
	TopologySpreadConstraints []any          `json:"topologySpreadConstraints"`
	Resources                 map[string]any `json:"resources"`
	AdditionalArguments       []string       `json:"additionalArguments"`
	Service                   struct {
		Spec map[string]any `json:"spec"`
	} `json:"service"`
}

func parseChartValues(text string) (*chartValues, error) {
	values := &chartValues{}
	if err := yaml.UnmarshalStrict([]byte(text), values); err != nil {
		return nil, wrapf(err, "a value that the stand-in does not act on")
	}
	image := values.Image
	if image.Registry == "" || image.Repository == "" || image.Digest == "" {
		return nil, errors.New("image needs registry, repository and digest: the stand-in has no image of its own")
	}
	if !values.PodDisruptionBudget.Enabled || values.Deployment.Replicas < 1 || values.Deployment.Grace < 1 || values.UpdateStrategy == nil {
		return nil, errors.New("the stand-in needs podDisruptionBudget, updateStrategy, deployment.replicas and deployment.terminationGracePeriodSeconds")
	}
	return values, nil
}

// objects is what the chart makes of the values.
func (v *chartValues) objects() ([]*unstructured.Unstructured, error) {
	template, err := packaged.ReadFile("packaged/traefik-chart.yaml.in")
	if err != nil {
		return nil, err
	}
	selector := map[string]string{"app.kubernetes.io/name": frontDoorName, "app.kubernetes.io/instance": "traefik-kube-system"}
	labels := map[string]string{"app.kubernetes.io/managed-by": "Helm"}
	for name, value := range selector {
		labels[name] = value
	}
	service := map[string]any{"type": "LoadBalancer", "selector": selector, "ports": []map[string]any{
		{"name": "web", "port": 80, "targetPort": "web", "protocol": "TCP"},
		{"name": "websecure", "port": 443, "targetPort": "websecure", "protocol": "TCP"},
	}}
	for name, value := range v.Service.Spec {
		service[name] = value
	}
	filled := string(template)
	for name, value := range map[string]any{
		"LABELS": labels, "SELECTOR": selector, "SERVICE": service, "MAX_UNAVAILABLE": v.PodDisruptionBudget.MaxUnavailable,
		"REPLICAS": v.Deployment.Replicas, "GRACE": v.Deployment.Grace, "STRATEGY": v.UpdateStrategy,
		"SPREAD": v.TopologySpreadConstraints, "RESOURCES": v.Resources,
		"IMAGE":     fmt.Sprintf("%s/%s@%s", v.Image.Registry, v.Image.Repository, v.Image.Digest),
		"ARGUMENTS": append(append([]string{}, chartArguments...), v.AdditionalArguments...),
	} {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		filled = strings.ReplaceAll(filled, "%{"+name+"}%", string(raw))
	}
	return parseObjects([]byte(filled))
}

// watch looks for a new HelmChartConfig until the server ends.
func (f *frontDoor) watch(ctx context.Context) {
	for {
		if err := f.look(ctx); err != nil && ctx.Err() == nil {
			logrus.Errorf("stand-in for helm: HelmChartConfig %s: %v", frontDoorName, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(frontDoorEvery):
		}
	}
}

func (f *frontDoor) look(ctx context.Context) error {
	config, err := f.cluster.dynamic.Resource(chartConfigResource).Namespace("kube-system").Get(ctx, frontDoorName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if config.GetResourceVersion() == f.done {
		return nil
	}
	text, _, err := unstructured.NestedString(config.Object, "spec", "valuesContent")
	if err != nil {
		return err
	}
	values, err := parseChartValues(text)
	if err != nil {
		f.done = config.GetResourceVersion() // said once; the next change is looked at again
		return err
	}
	objects, err := values.objects()
	if err != nil {
		return err
	}
	for _, object := range objects {
		if _, err := f.cluster.apply(ctx, object); err != nil {
			return err
		}
	}
	if err := f.balance(ctx); err != nil {
		return err
	}
	logrus.Infof("stand-in for helm: applied HelmChartConfig %s", frontDoorName)
	f.done = config.GetResourceVersion()
	return nil
}

// balance gives Traefik's Service the node's address, as servicelb does; kube-proxy leads its ports to the pods.
func (f *frontDoor) balance(ctx context.Context) error {
	raw, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{
		"ingress": []map[string]any{{"ip": f.address}},
	}}})
	if err != nil {
		return err
	}
	_, err = f.cluster.dynamic.Resource(serviceResource).Namespace("kube-system").Patch(ctx, frontDoorName, types.MergePatchType, raw,
		metav1.PatchOptions{}, "status")
	return err
}

// frontDoorManifest is the file traefik.yaml of the manifests directory: the chart's name and Traefik's definitions.
func (n *node) frontDoorManifest() ([]byte, error) {
	chart, err := packaged.ReadFile("packaged/traefik.yaml")
	if err != nil {
		return nil, err
	}
	kinds, err := os.ReadFile(filepath.Join(filepath.Dir(n.children.bin), "manifests", definitions))
	if err != nil {
		return nil, err
	}
	return append(append(chart, "---\n"...), kinds...), nil
}
