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

// newRevocationValidator returns a validator that uses OCSP and revocation lists as the notation command does. Without
// a cache, revocation lists are fetched each time.
func newRevocationValidator(use purpose.Purpose) (revocation.Validator, error) {
	fetcher, err := corecrl.NewHTTPFetcher(&http.Client{Timeout: crlTimeout})
	if err != nil {
		return nil, err
	}
	fetcher.DiscardCacheError = true
	if folder, err := dir.CacheFS().SysPath(dir.PathCRLCache); err == nil {
		if cache, err := crl.NewFileCache(folder); err == nil {
			fetcher.Cache = cache
		} else {
			slog.Warn("cannot cache revocation lists", "error", err)
		}
	}
	return revocation.NewWithOptions(revocation.Options{
		OCSPHTTPClient: &http.Client{Timeout: ocspTimeout}, CRLFetcher: fetcher, CertChainPurpose: use,
	})
}

// trustedOnly checks the revocation of trusted chains only. At level audit, Notation's verifier checks all chains: an
// untrusted certificate would decide which addresses are connected to.
type trustedOnly struct{ revocation.Validator }

// ValidateContext checks the chain if the function in the context (withTrust) trusts it, and fails for other chains.
func (t trustedOnly) ValidateContext(ctx context.Context,
	options revocation.ValidateContextOptions) ([]*result.CertRevocationResult, error) {
	trusts, ok := ctx.Value(trustKey{}).(func(context.Context, []*x509.Certificate) bool)
	if !ok || !trusts(ctx, options.CertChain) {
		return nil, errors.New("the certificates are not trusted, so the addresses in them are not contacted")
	}
	return t.Validator.ValidateContext(ctx, options)
}

type trustKey struct{}

// withTrust returns a context with the function that tells whether a chain is trusted.
func withTrust(ctx context.Context, trusts func(context.Context, []*x509.Certificate) bool) context.Context {
	return context.WithValue(ctx, trustKey{}, trusts)
}

// trusts reports whether a certificate of the chain is in a trust store of the statement. The chain itself has been
// verified before.
func (e *examination) trusts(ctx context.Context, chain []*x509.Certificate) bool {
	stores := truststore.NewX509TrustStore(dir.ConfigFS())
	for _, name := range e.statement.TrustStores {
		kind, store, _ := strings.Cut(name, ":")
		certificates, err := stores.GetCertificates(ctx, truststore.Type(kind), store)
		if err != nil {
			continue // Notation reports it
		}
		if slices.ContainsFunc(certificates, func(c *x509.Certificate) bool { return slices.ContainsFunc(chain, c.Equal) }) {
			return true
		}
	}
	return false
}
