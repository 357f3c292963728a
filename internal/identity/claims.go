package identity

import (
	"errors"
	"fmt"
)

// tokenType is a CI system, by what its tokens claim.
type tokenType struct {
	oneUse bool     // a job requests a token for each request
	claims []string // claims that are strings and not empty
	check  func(claims map[string]any, subject string) error
}

// types are the types of issuers, by their name in the config.
var types = map[string]tokenType{
	"github": {oneUse: true, claims: []string{"repository", "repository_id", "repository_owner", "repository_owner_id",
		"ref", "sha", "workflow_ref", "event_name", "run_id", "run_attempt"}},
	"gitlab": {claims: []string{"project_id", "project_path", "namespace_id", "namespace_path", "ref", "ref_type",
		"ref_protected", "sha", "pipeline_id", "pipeline_source", "job_id"}},
	"kubernetes": {check: checkKubernetes},
	"other":      {oneUse: true},
}

// checkClaims verifies that a token has the claims of its type.
func (k tokenType) checkClaims(claims map[string]any, subject string) error {
	for _, name := range k.claims {
		if text, _ := claims[name].(string); text == "" {
			return fmt.Errorf("it has no claim %s", name)
		}
	}
	if k.check == nil {
		return nil
	}
	return k.check(claims, subject)
}

// checkKubernetes verifies the claim kubernetes.io, and that it and the subject name the same service account.
func checkKubernetes(claims map[string]any, subject string) error {
	private, _ := claims["kubernetes.io"].(map[string]any)
	account, _ := private["serviceaccount"].(map[string]any)
	namespace, _ := private["namespace"].(string)
	name, _ := account["name"].(string)
	uid, _ := account["uid"].(string)
	if namespace == "" || name == "" || uid == "" {
		return errors.New("its claim kubernetes.io lacks the namespace, or the name or uid of the service account")
	}
	if subject != "system:serviceaccount:"+namespace+":"+name {
		return errors.New("its subject (sub) is another service account than its claim kubernetes.io")
	}
	return nil
}
