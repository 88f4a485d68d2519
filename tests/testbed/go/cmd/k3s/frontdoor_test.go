package main

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const chartExample = `
image: {registry: registry.test, repository: hearth/traefik, digest: sha256:abc}
deployment: {replicas: 2, terminationGracePeriodSeconds: 150}
updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
podDisruptionBudget: {enabled: true, maxUnavailable: 1}
topologySpreadConstraints: []
service: {spec: {externalTrafficPolicy: Local}}
resources: {limits: {memory: 512Mi}}
additionalArguments: ["--log.level=WARN", "--entryPoints.websecure.http.aliasHeadersStrategy=delete"]
`

// The values of the role reach the Deployment, and its arguments come behind those of the chart: the last one counts.
func TestFrontDoor(t *testing.T) {
	values, err := parseChartValues(chartExample)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := values.objects()
	if err != nil {
		t.Fatal(err)
	}
	byKind := map[string]*unstructured.Unstructured{}
	for _, object := range objects {
		byKind[object.GetKind()] = object
	}
	containers, _, _ := unstructured.NestedSlice(byKind["Deployment"].Object, "spec", "template", "spec", "containers")
	container := containers[0].(map[string]any)
	if container["image"] != "registry.test/hearth/traefik@sha256:abc" {
		t.Errorf("image %v", container["image"])
	}
	args, _, _ := unstructured.NestedStringSlice(container, "args")
	if want := append(slices.Clone(chartArguments), values.AdditionalArguments...); !slices.Equal(args, want) {
		t.Errorf("arguments %q", args)
	}
	policy, _, _ := unstructured.NestedString(byKind["Service"].Object, "spec", "externalTrafficPolicy")
	if policy != "Local" {
		t.Errorf("externalTrafficPolicy %q", policy)
	}
}

// What the stand-in does not act on, it refuses.
func TestFrontDoorRefuses(t *testing.T) {
	for _, text := range []string{
		chartExample + "ports: {web: {port: 81}}\n",
		strings.Replace(chartExample, "replicas", "replica", 1),
		strings.Replace(chartExample, "digest: sha256:abc", "tag: v3", 1),
		strings.Replace(chartExample, "enabled: true", "enabled: false", 1),
		"[]",
	} {
		if _, err := parseChartValues(text); err == nil {
			t.Errorf("accepted:\n%s", text)
		}
	}
}
