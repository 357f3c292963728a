// Command ratify answers as Ratify does in a cluster: it takes the resources of a file to where Ratify's controllers
// take them, asks Ratify's executor about each image, and prints "true" or "false" for it. tools/kubernetes/build.sh
// builds it as a part of Ratify's own module.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/ratify-project/ratify/api/v1beta1"
	"github.com/ratify-project/ratify/pkg/controllers"
	"github.com/ratify-project/ratify/pkg/controllers/utils"
	"github.com/ratify-project/ratify/pkg/executor"
	"github.com/ratify-project/ratify/pkg/executor/core"
	"github.com/ratify-project/ratify/pkg/keymanagementprovider"
	_ "github.com/ratify-project/ratify/pkg/keymanagementprovider/inline"
	"github.com/ratify-project/ratify/pkg/policyprovider"
	_ "github.com/ratify-project/ratify/pkg/policyprovider/configpolicy"
	_ "github.com/ratify-project/ratify/pkg/referrerstore/oras"
	_ "github.com/ratify-project/ratify/pkg/verifier/notation"
)

func main() {
	data, err := os.ReadFile(os.Args[1])
	check(err)
	var policy policyprovider.PolicyProvider
	for _, document := range bytes.Split(data, []byte("\n---\n"))[1:] {
		var kind struct{ Kind string }
		check(yaml.Unmarshal(document, &kind))
		switch kind.Kind {
		case "KeyManagementProvider":
			var r v1beta1.KeyManagementProvider
			check(yaml.UnmarshalStrict(document, &r))
			provider, err := utils.SpecToKeyManagementProvider(r.Spec.Parameters.Raw, r.Spec.Type, r.Name)
			check(err)
			certificates, _, err := provider.GetCertificates(context.Background())
			check(err)
			keymanagementprovider.SaveSecrets(r.Name, r.Spec.Type, nil, certificates)
		case "Policy":
			var r v1beta1.Policy
			check(yaml.UnmarshalStrict(document, &r))
			policy, err = utils.SpecToPolicyEnforcer(r.Spec.Parameters.Raw, r.Spec.Type)
			check(err)
		case "Verifier":
			var r v1beta1.Verifier
			check(yaml.UnmarshalStrict(document, &r))
			config, err := utils.SpecToVerifierConfig(r.Spec.Parameters.Raw, r.Name, utils.GetVerifierType(r.Spec),
				r.Spec.ArtifactTypes, r.Spec.Source)
			check(err)
			check(utils.UpsertVerifier(r.Spec.Version, r.Spec.Address, "", r.Name, config))
		case "ConstraintTemplate": // Gatekeeper's
		default:
			log.Fatalf("there is a resource of kind %q", kind.Kind)
		}
	}
	store, err := utils.CreateStoreConfig([]byte(`{"useHttp": true}`), "oras", nil)
	check(err)
	check(utils.UpsertStoreMap("", "", "store-oras", "", store))
	ratify := core.Executor{Verifiers: controllers.NamespacedVerifiers.GetVerifiers(""),
		ReferrerStores: controllers.NamespacedStores.GetStores(""), PolicyEnforcer: policy}
	for _, image := range os.Args[2:] {
		result, err := ratify.VerifySubject(context.Background(), executor.VerifyParameters{Subject: image})
		check(err)
		fmt.Println(result.IsSuccess)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
