package main

import (
	"context"
	"crypto"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/publisher"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// maxRoot is the size of the largest root of tags, in bytes.
const maxRoot = 256 << 10

// readRoot reads the pinned root of a repository's tags, and verifies its signatures.
func readRoot(path string) ([]byte, error) {
	data, err := bound.ReadFile(path, maxRoot)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the root of tags: %w", err).
			WithHint("name the file that 'hsm-image tag init' wrote")
	}
	if _, err := tuf.CheckPin(data); err != nil {
		return nil, failure.New(failure.From(err).Kind, "cannot use the root of tags %s: %w", path, err).
			WithHint("name the file that 'hsm-image tag init' wrote")
	}
	return data, nil
}

// readRepositories returns the repositories whose tags the broker publishes.
func readRepositories(f *brokerfile.File) (all []publisher.Repository, err error) {
	for _, t := range f.Tags {
		root, err := readRoot(t.Root)
		if err != nil {
			return nil, err
		}
		all = append(all, publisher.Repository{Name: t.Repository, Root: root, Snapshot: t.Snapshot, Timestamp: t.Timestamp})
	}
	return all, nil
}

// publishTags starts to publish tags with the keys of a broker, until the returned function is called. Of the replicas
// of a broker, the one that leads does: a tag has one writer.
func publishTags(f *brokerfile.File, repositories []publisher.Repository, registries *repository.Registries,
	b *broker.Broker, keys broker.Keys, metrics prometheus.Registerer) (stop func()) {
	if len(repositories) == 0 {
		return func() {}
	}
	p := publisher.New(publisher.Options{Repositories: repositories, Registries: registries,
		Dir: filepath.Join(f.Folder(), "tags"), Sign: b.Sign, Registerer: metrics,
		Public: func(ctx context.Context, key string) (crypto.PublicKey, error) {
			public, _, err := keys.Describe(ctx, key)
			return public, err
		}})
	return background(func(ctx context.Context) { b.WhileLeading(ctx, p.Run) })
}
