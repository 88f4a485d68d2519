package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
	bootstrapsecrets "k8s.io/cluster-bootstrap/util/secrets"
)

// runToken is `k3s token`: bootstrap tokens are Kubernetes' own Secrets; rotate exchanges the server token.
func runToken(args []string) error {
	flags := flag.NewFlagSet("k3s token", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	ttl := flags.Duration("ttl", 24*time.Hour, "")
	description := flags.String("description", "", "")
	fresh := flags.String("new-token", "", "")
	output := "text"
	flags.StringVar(&output, "o", output, "")
	flags.StringVar(&output, "output", output, "")
	if len(args) == 0 {
		return errors.New("want create, list, delete, generate or rotate")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "generate":
		token, err := bootstraputil.GenerateBootstrapToken()
		if err == nil {
			fmt.Println(token)
		}
		return err
	case "create":
		return createToken(*ttl, *description)
	case "list":
		return listTokens(output)
	case "delete":
		return deleteTokens(flags.Args())
	case "rotate":
		if *fresh == "" {
			return errors.New("--new-token is required")
		}
		fmt.Print("\033[33mWARNING: Recommended to keep a record of the old token. If restoring from a snapshot, you must use the token associated with that snapshot.\033[0m\n")
		var said string
		if err := askServer(http.MethodPut, "/v1-k3s/token", *fresh, &said); err != nil {
			return err
		}
		fmt.Println(said)
		return nil
	}
	return fmt.Errorf("no help topic for %q", args[0])
}

func adminCluster() (*cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfigPath)
	if err != nil {
		return nil, err
	}
	return newCluster(config)
}

func createToken(ttl time.Duration, description string) error {
	cl, err := adminCluster()
	if err != nil {
		return err
	}
	token, err := bootstraputil.GenerateBootstrapToken()
	if err != nil {
		return err
	}
	id, secret, _ := strings.Cut(token, ".")
	data := map[string]string{
		bootstrapapi.BootstrapTokenIDKey:               id,
		bootstrapapi.BootstrapTokenSecretKey:           secret,
		bootstrapapi.BootstrapTokenDescriptionKey:      description,
		bootstrapapi.BootstrapTokenUsageAuthentication: "true",
		bootstrapapi.BootstrapTokenUsageSigningKey:     "true",
		bootstrapapi.BootstrapTokenExtraGroupsKey:      joinGroup,
	}
	if ttl > 0 {
		data[bootstrapapi.BootstrapTokenExpirationKey] = time.Now().UTC().Add(ttl).Format(time.RFC3339)
	}
	_, err = cl.core.Secrets("kube-system").Create(context.Background(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: bootstrapapi.BootstrapTokenSecretPrefix + id},
		Type:       bootstrapapi.SecretTypeBootstrapToken, StringData: data,
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(dirs{dataDirOf(defaultConfig)}.tls("server-ca.crt"))
	if err != nil {
		return err
	}
	fmt.Printf("K10%s::%s\n", caHash(ca), token)
	return nil
}

func listTokens(output string) error {
	cl, err := adminCluster()
	if err != nil {
		return err
	}
	all, err := cl.core.Secrets("kube-system").List(context.Background(),
		metav1.ListOptions{FieldSelector: "type=" + string(bootstrapapi.SecretTypeBootstrapToken)})
	if err != nil {
		return err
	}
	type entry struct {
		Token       string   `json:"token"`
		Description string   `json:"description"`
		Expires     string   `json:"expires"`
		Groups      []string `json:"groups"`
	}
	list := []entry{}
	for _, secret := range all.Items {
		groups, err := bootstrapsecrets.GetGroups(&secret)
		if err != nil {
			return err
		}
		list = append(list, entry{ // the secret half is for whoever made it
			Token:       bootstrapsecrets.GetData(&secret, bootstrapapi.BootstrapTokenIDKey),
			Description: bootstrapsecrets.GetData(&secret, bootstrapapi.BootstrapTokenDescriptionKey),
			Expires:     bootstrapsecrets.GetData(&secret, bootstrapapi.BootstrapTokenExpirationKey), Groups: groups,
		})
	}
	if output == "json" {
		return json.NewEncoder(os.Stdout).Encode(list)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "TOKEN\tEXPIRES\tDESCRIPTION\tEXTRA GROUPS\n")
	for _, one := range list {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", one.Token, one.Expires, one.Description, strings.Join(one.Groups, ","))
	}
	return table.Flush()
}

func deleteTokens(ids []string) error {
	if len(ids) == 0 {
		return errors.New("missing token to delete")
	}
	cl, err := adminCluster()
	if err != nil {
		return err
	}
	for _, token := range ids {
		id, _, _ := strings.Cut(token, ".")
		name := bootstrapapi.BootstrapTokenSecretPrefix + id
		if err := cl.core.Secrets("kube-system").Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		fmt.Printf("bootstrap token %q deleted\n", id)
	}
	return nil
}

// rotateToken encrypts the bootstrap data with the new token and forgets the old one. Every node that restarts needs it.
func (s *supervisor) rotateToken(w http.ResponseWriter, r *http.Request) {
	var given string
	err := json.NewDecoder(r.Body).Decode(&given)
	fresh, _, formErr := secretOf(given)
	if err != nil || formErr != nil || fresh == "" {
		http.Error(w, "want a new token", http.StatusBadRequest)
		return
	}
	s.tokens.Lock()
	defer s.tokens.Unlock()
	old := s.serverSecret
	err = s.withStore(func(store *clientv3.Client) error {
		if err := s.putBootstrap(r.Context(), store, fresh); err != nil || fresh == old {
			return err
		}
		return dropBootstrap(r.Context(), store, old)
	})
	if err == nil {
		err = writeTokens(s.dirs, fresh, s.agentSecret)
	}
	if err == nil {
		s.serverSecret = fresh
	}
	answer(w, "Token rotated, restart k3s nodes with new token", err)
}
