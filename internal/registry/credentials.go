package registry

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	dockerconfig "go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// The host of Docker Hub's Notary server, which takes the credentials of Docker Hub.
const notaryHub = "notary.docker.io"

// Credentials returns the credentials for a service that takes those of registries, such as a Notary server.
func (r *Registries) Credentials(path string) auth.CredentialFunc {
	return func(ctx context.Context, host string) (auth.Credential, error) {
		if host == notaryHub {
			host = DockerHubHost
		}
		return r.credential(ctx, host, path)
	}
}

// credential returns the credentials for a repository of a registry: those of Notation, or else those of Podman and
// Docker. It fails when ctx ends before a credential helper has answered.
func (r *Registries) credential(ctx context.Context, host, path string) (auth.Credential, error) {
	type found struct {
		auth.Credential
		err error
	}
	answer := make(chan found, 1)
	go func() {
		var f found
		defer func() {
			if cause := recover(); cause != nil { // it would end the program without a decision
				slog.Error("panic", "what", fmt.Sprint(cause), "stack", string(debug.Stack()))
				f.err = fmt.Errorf("internal error: %v", cause)
			}
			answer <- f
		}()
		f.Credential, f.err = r.lookUp(ctx, host, path)
	}()
	select {
	case f := <-answer:
		return f.Credential, f.err
	case <-ctx.Done():
		return auth.EmptyCredential, noCredentials(host, ctx.Err())
	}
}

func noCredentials(host string, err error) error {
	return fmt.Errorf("cannot get the credentials of %s: %w", host, err)
}

// lookUp is credential without the end of ctx.
func (r *Registries) lookUp(ctx context.Context, host, path string) (auth.Credential, error) {
	system := &types.SystemContext{AuthFilePath: r.options.AuthFile}
	if system.AuthFilePath == "" {
		if own, ok := notationCredential(ctx, host); ok {
			return own, nil
		}
		system.AuthFilePath = os.Getenv("REGISTRY_AUTH_FILE")
	}
	if host == DockerHubHost {
		host = DockerHub
	}
	c, err := dockerconfig.GetCredentials(system, host+"/"+path)
	if err != nil {
		return auth.EmptyCredential, noCredentials(host, err)
	}
	return auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken}, nil
}

// notationCredential returns the credentials that 'notation login' has stored, if there are any.
func notationCredential(ctx context.Context, host string) (auth.Credential, bool) {
	store, err := credentials.NewStore(notationFile(), credentials.StoreOptions{})
	if err != nil || !store.IsAuthConfigured() {
		return auth.EmptyCredential, false
	}
	c, err := credentials.Credential(store)(ctx, host)
	return c, err == nil && c != auth.EmptyCredential
}
