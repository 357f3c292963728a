package gate

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/notaryproject/notation-core-go/revocation"
	corecrl "github.com/notaryproject/notation-core-go/revocation/crl"
	"github.com/notaryproject/notation-core-go/revocation/purpose"
	"github.com/notaryproject/notation-core-go/revocation/result"
	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier/crl"
	"github.com/notaryproject/notation-go/verifier/truststore"
)

// revocationOf asks OCSP responders and reads revocation lists as the notation command does: with a cache that may
// fail.
func revocationOf(use purpose.Purpose) (revocation.Validator, error) {
	fetcher, err := corecrl.NewHTTPFetcher(&http.Client{Timeout: crlTimeout})
	if err != nil {
		return nil, err
	}
	fetcher.DiscardCacheError = true
	if folder, err := dir.CacheFS().SysPath(dir.PathCRLCache); err == nil {
		if cache, err := crl.NewFileCache(folder); err == nil {
			fetcher.Cache = cache
		} else {
			slog.Warn("revocation lists are not kept", "error", err)
		}
	}
	return revocation.NewWithOptions(revocation.Options{
		OCSPHTTPClient: &http.Client{Timeout: ocspTimeout}, CRLFetcher: fetcher, CertChainPurpose: use,
	})
}

// trusted has certificates checked for revocation only if someone trusts their chain. At level audit Notation's
// verifier would check any: an untrusted certificate would decide which addresses are asked, and what is read from
// there.
type trusted struct{ revocation.Validator }

// ValidateContext checks a chain that the trust in the context covers.
func (t trusted) ValidateContext(ctx context.Context,
	options revocation.ValidateContextOptions) ([]*result.CertRevocationResult, error) {
	trusts, ok := ctx.Value(trust{}).(func(context.Context, []*x509.Certificate) bool)
	if !ok || !trusts(ctx, options.CertChain) {
		return nil, errors.New("the certificates are not trusted, so nothing is asked of the addresses in them")
	}
	return t.Validator.ValidateContext(ctx, options)
}

// trust is the key of a context's value.
type trust struct{}

func withTrust(ctx context.Context, trusts func(context.Context, []*x509.Certificate) bool) context.Context {
	return context.WithValue(ctx, trust{}, trusts)
}

// trusts returns whether a certificate of a chain is in a trust store of the policy's statement. That the chain holds
// together is known by then.
func (e *examination) trusts(ctx context.Context, chain []*x509.Certificate) bool {
	stores := truststore.NewX509TrustStore(dir.ConfigFS())
	for _, name := range e.statement.TrustStores {
		kind, store, _ := strings.Cut(name, ":")
		certificates, err := stores.GetCertificates(ctx, truststore.Type(kind), store)
		if err != nil {
			continue // Notation says so
		}
		if slices.ContainsFunc(certificates, func(c *x509.Certificate) bool { return slices.ContainsFunc(chain, c.Equal) }) {
			return true
		}
	}
	return false
}
