package worker

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"

	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// run runs the operation of a call and returns the body of its answer.
func (c *served) run(ctx context.Context, f frame) ([]byte, error) {
	switch f.kind {
	case opSign, opSignMessage, opDecrypt, opECDH:
		return c.use(ctx, f)
	}
	var a arguments
	if err := json.Unmarshal(f.body, &a); err != nil {
		return nil, errCall()
	}
	var r results
	var err error
	switch f.kind {
	case opOpenStore:
		err = c.open(ctx, a, &r)
	case opListTokens:
		r.Tokens, err = c.server.backend.Tokens(ctx, a.Settings)
	case opCloseStore:
		err = c.server.closeStore(a.Store)
	case opGenerate, opImportWrapping:
		err = c.create(ctx, f.kind, a, &r)
	case opReadPublic, opInfo:
		err = c.examine(ctx, f.kind, a, &r)
	default:
		var store keystore.Store
		if store, err = c.server.store(a.Store); err != nil {
			return nil, err
		}
		c.token = func() string { return store.Describe().URI }
		err = c.inStore(ctx, store, f.kind, a, &r)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// open opens a store.
func (c *served) open(ctx context.Context, a arguments, r *results) error {
	store, err := c.server.backend.Open(ctx, a.Settings)
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // nobody waits for it
		return store.Close()
	}
	token := store.Describe()
	r.Store, r.Token = c.server.addStore(store), &token
	return nil
}

// create runs an operation of the backend that makes a key. It opens a store before, which says whose PIN is asked for.
func (c *served) create(ctx context.Context, k kind, a arguments, r *results) error {
	store, err := c.server.backend.Open(ctx, a.Settings)
	if err != nil {
		return err
	}
	uri := store.Describe().URI
	c.token = func() string { return uri }
	if err := store.Close(); err != nil {
		return err
	}
	if k == opImportWrapping {
		return c.server.backend.ImportWrapping(ctx, a.Settings, a.PINSource, a.Wrapping, a.Data)
	}
	made, err := c.server.backend.Generate(ctx, a.Settings, *a.Request)
	if err != nil {
		return err
	}
	return r.setInfo(made)
}

func (r *results) setInfo(i key.Info) (err error) {
	if r.Public, err = encodePublic(i.Public); err != nil {
		return err
	}
	i.Public = nil
	r.Info = &i
	return nil
}

// inStore runs an operation of a store.
func (c *served) inStore(ctx context.Context, store keystore.Store, k kind, a arguments, r *results) error {
	ctx = keystore.WithProgress(ctx, func(activity string, done, total int) {
		body, _ := json.Marshal(progress{activity, done, total}) // a string and numbers always marshal
		_ = c.server.out.send(c.number, msgProgress, body)       // else the call fails as well
	})
	switch k {
	case opLogin:
		return c.loginFirst(ctx, store)
	case opFindKey, opFindKeys:
		return c.find(ctx, store, k, a, r)
	case opPublic, opReceives, opLeaf, opIssuers, opCertificates, opTaken:
		return look(ctx, store, k, a, r)
	case opImportChain, opDeleteKey, opWrap:
		return c.withKey(ctx, store, k, a, r)
	case opDiscard:
		return store.Discard(ctx)
	case opFindWrapping, opUnwrap, opAuthenticate, opVerify:
		return backUp(ctx, store, k, a, r)
	}
	return errCall()
}

// find finds one key or all.
func (c *served) find(ctx context.Context, store keystore.Store, k kind, a arguments, r *results) error {
	if err := c.loginFirst(ctx, store); err != nil {
		return err
	}
	var found []keystore.Key
	if k == opFindKeys {
		all, err := store.Keys(ctx)
		if err != nil {
			return err
		}
		found = all
	} else {
		half, err := decodePublic(a.Public)
		if err != nil {
			return err
		}
		one, err := store.Key(ctx, half)
		if err != nil {
			return err
		}
		found = []keystore.Key{one}
	}
	for _, one := range found {
		der, err := encodePublic(one.Public())
		if err != nil {
			return err
		}
		r.Keys = append(r.Keys, foundKey{Key: c.server.addKey(a.Store, one), Public: der})
	}
	return nil
}

// look runs an operation that reads a store.
func look(ctx context.Context, store keystore.Store, k kind, a arguments, r *results) (err error) {
	switch k {
	case opPublic:
		half, err := store.Public(ctx)
		if err != nil {
			return err
		}
		r.Public, err = encodePublic(half)
		return err
	case opReceives:
		half, err := decodePublic(a.Public)
		if err != nil {
			return err
		}
		told, err := store.Receives(ctx, half)
		r.Receives = &told
		return err
	case opLeaf:
		cert, err := store.Leaf(ctx)
		if cert != nil {
			r.Chain = [][]byte{cert.Raw}
		}
		return err
	case opIssuers:
		chain, err := decodeCertificates(a.Chain)
		if err != nil || len(chain) != 1 {
			return errCall()
		}
		found, err := store.Issuers(ctx, chain[0])
		r.Chain = encodeCertificates(found)
		return err
	case opCertificates:
		found, err := store.Certificates(ctx)
		r.Chain = encodeCertificates(found)
		return err
	}
	r.Taken, err = store.Taken(ctx, *a.Name)
	return err
}

// withKey runs an operation of a store on one of its keys.
func (c *served) withKey(ctx context.Context, store keystore.Store, k kind, a arguments, r *results) error {
	held, err := c.server.key(a.Key)
	if err != nil {
		return err
	}
	if held.store != a.Store {
		return errCall()
	}
	if k == opWrap {
		wrapped, err := store.Wrap(ctx, held.Key, *a.Name)
		r.Wrapped = &wrapped
		return err
	}
	chain, err := decodeCertificates(a.Chain)
	if err != nil {
		return err
	}
	if k == opDeleteKey {
		return store.Delete(ctx, held.Key, chain)
	}
	r.Count, err = store.Import(ctx, held.Key, chain)
	return err
}

// backUp runs an operation with a wrapping key.
func backUp(ctx context.Context, store keystore.Store, k kind, a arguments, r *results) (err error) {
	switch k {
	case opFindWrapping:
		r.Wrapping, err = store.WrappingKey(ctx, *a.Name)
		return err
	case opAuthenticate:
		mac, err := store.Authenticate(ctx, a.Data, a.Mechanism, a.Wrapping)
		r.MAC = &mac
		return err
	case opVerify:
		return store.Verify(ctx, a.Data, *a.MAC, a.Mechanism, a.Wrapping)
	}
	half, err := decodePublic(a.Public)
	if err != nil {
		return err
	}
	return store.Unwrap(ctx, *a.Wrapped, a.Usage, a.Label, a.ID, half)
}

// examine reads what the module shows of a key.
func (c *served) examine(ctx context.Context, k kind, a arguments, r *results) error {
	held, err := c.server.key(a.Key)
	if err != nil {
		return err
	}
	c.token = c.tokenOf(held)
	if k == opInfo {
		i, err := held.Info(ctx)
		if err != nil {
			return err
		}
		return r.setInfo(i)
	}
	half, err := held.ReadPublic(ctx)
	if err != nil {
		return err
	}
	r.Public, err = encodePublic(half)
	return err
}

// use uses a private key.
func (c *served) use(ctx context.Context, f frame) ([]byte, error) {
	u, ok := decodeUse(f.body)
	if !ok {
		return nil, errCall()
	}
	held, err := c.server.key(u.key)
	if err != nil {
		return nil, err
	}
	c.token = c.tokenOf(held)
	switch f.kind {
	case opSign:
		return held.Sign(ctx, u.data, u.signerOpts())
	case opSignMessage:
		return held.SignMessage(ctx, u.data, u.signerOpts())
	case opDecrypt:
		return held.Decrypt(ctx, u.data, u.decrypterOpts())
	}
	half, err := decodePublic(u.data)
	public, ok := half.(*ecdsa.PublicKey)
	if err != nil || !ok {
		return nil, errCall()
	}
	remote, err := public.ECDH()
	if err != nil {
		return nil, errCall()
	}
	return held.ECDH(ctx, remote)
}

// tokenOf returns the token of a key, for a use that asks for its PIN.
func (c *served) tokenOf(held heldKey) func() string {
	return func() string {
		store, err := c.server.store(held.store)
		if err != nil {
			return ""
		}
		return store.Describe().URI
	}
}
