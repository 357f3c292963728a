package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func TestAudience(t *testing.T) {
	b := newBench(t, func(i *Issuer) { i.Audience = Strings{audience, "second"} })
	for _, good := range []any{audience, "second", []any{audience}, []any{audience, "second"}} {
		b.accepted(t, b.mint(t, map[string]any{"aud": good}))
	}
	for _, bad := range []any{"third", audience + "/", strings.ToUpper(audience), "", []any{audience, "third"}, []any{""},
		[]any{audience, 7}} {
		b.refused(t, b.mint(t, map[string]any{"aud": bad}), failure.Denied, "another audience (aud)")
	}
	for _, bad := range []any{nil, 7, []any{}, map[string]any{audience: audience}} {
		b.refused(t, b.mint(t, map[string]any{"aud": bad}), failure.Denied, "no audience (aud)")
	}
}

func TestTimes(t *testing.T) {
	b := newBench(t, func(i *Issuer) { i.MaxLifetime = time.Hour })
	now := b.clock.time().Unix()
	for name, changes := range map[string]map[string]any{
		"exp 59 s ago":           {"iat": now - 600, "exp": now - 59},
		"exp with a fraction":    {"exp": float64(now) + 0.5},
		"iat in 60 s":            {"iat": now + 60},
		"nbf in 60 s":            {"nbf": now + 60},
		"no nbf":                 {"nbf": nil},
		"as long as is allowed":  {"iat": now - 1800, "exp": now + 1800},
		"issued an hour ago":     {"iat": now - 3600, "exp": now},
		"nbf long before it was": {"nbf": now - 3600},
	} {
		t.Run(name, func(t *testing.T) { b.accepted(t, b.mint(t, changes)) })
	}
	for name, test := range map[string]struct {
		changes map[string]any
		want    string
	}{
		"exp 60 s ago":     {map[string]any{"iat": now - 600, "exp": now - 60}, "it has expired (exp)"},
		"iat in 61 s":      {map[string]any{"iat": now + 61}, "issued in the future (iat)"},
		"nbf in 61 s":      {map[string]any{"nbf": now + 61}, "not valid yet (nbf)"},
		"too long":         {map[string]any{"iat": now - 1800, "exp": now + 1801}, "valid for longer than 1h0m0s"},
		"for ever":         {map[string]any{"exp": int64(maxInteger)}, "valid for longer than"},
		"no exp":           {map[string]any{"exp": nil}, "no time exp"},
		"no iat":           {map[string]any{"iat": nil}, "no time iat"},
		"exp is a string":  {map[string]any{"exp": fmt.Sprint(now + 60)}, "no time exp"},
		"iat is a string":  {map[string]any{"iat": "now"}, "no time iat"},
		"nbf is a string":  {map[string]any{"nbf": "now"}, "no time nbf"},
		"nbf is an object": {map[string]any{"nbf": map[string]any{}}, "no time nbf"},
		"exp is zero":      {map[string]any{"exp": 0}, "no time exp"},
		"iat is negative":  {map[string]any{"iat": -1}, "no time iat"},
	} {
		t.Run(name, func(t *testing.T) { b.refused(t, b.mint(t, test.changes), failure.Denied, test.want) })
	}
	token := b.mint(t, map[string]any{"iat": now, "exp": now + 300})
	if got := b.accepted(t, token).Token.Expires.Unix(); got != now+360 {
		t.Errorf("token expires %d s from now, want 360", got-now)
	}
	b.clock.add(359 * time.Second)
	b.accepted(t, token)
	b.clock.add(time.Second)
	b.refused(t, token, failure.Denied, "it has expired (exp)")
}

func TestDefaultLifetime(t *testing.T) {
	b := newBench(t, nil)
	now := b.clock.time().Unix()
	b.accepted(t, b.mint(t, map[string]any{"exp": now + 24*3600}))
	b.refused(t, b.mint(t, map[string]any{"exp": now + 24*3600 + 1}), failure.Denied, "valid for longer than 24h0m0s")
}

func TestSubject(t *testing.T) {
	b := newBench(t, nil)
	b.accepted(t, b.mint(t, map[string]any{"sub": strings.Repeat("s", maxSubject)}))
	for _, bad := range []any{nil, "", 7, strings.Repeat("s", maxSubject+1)} {
		b.refused(t, b.mint(t, map[string]any{"sub": bad}), failure.Denied, "subject (sub) is missing or too long")
	}
}

func TestUnlistedIssuer(t *testing.T) {
	b := newBench(t, nil)
	for _, bad := range []any{nil, "", 7, b.issuer.URL + "/", "https://issuer.example.com"} {
		b.refused(t, b.mint(t, map[string]any{"iss": bad}), failure.Denied, "issuer (iss) is not listed")
	}
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestAlgorithmConfusion presents tokens that a verifier accepts which lets a token choose how it is verified.
func TestAlgorithmConfusion(t *testing.T) {
	b := newBench(t, nil)
	key := rsaKey(t, 2048)
	b.issuer.Publish(jose.JSONWebKey{Key: &key.PublicKey, KeyID: "rsa", Use: "sig"},
		jose.JSONWebKey{Key: &key.PublicKey, KeyID: "rs256-only", Algorithm: "RS256"})
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	mac := func(secret []byte) func([]byte) []byte {
		return func(input []byte) []byte {
			h := hmac.New(sha256.New, secret)
			h.Write(input)
			return h.Sum(nil)
		}
	}
	signRSA := func(input []byte) []byte {
		digest := sha256.Sum256(input)
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	signPSS := func(input []byte) []byte {
		digest := sha256.Sum256(input)
		signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: 32})
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	newest := b.issuer.Key()
	signEC := signES256(t, newest)
	none := func([]byte) []byte { return nil }
	payload := b.payload(t, map[string]any{"secret": secretClaim})
	b.accepted(t, encode(`{"alg":"RS256","kid":"rsa","x5t":"thumbprint","typ":"JWT"}`, payload, signRSA))
	b.accepted(t, encode(`{"alg":"RS256","kid":"rs256-only"}`, payload, signRSA))
	b.accepted(t, encode(`{"alg":"ES256","kid":"`+newest.KeyID+`"}`, payload, signEC))
	for name, test := range map[string]struct {
		header string
		sign   func([]byte) []byte
		want   string
	}{
		"none":                 {`{"alg":"none","kid":"rsa"}`, none, "algorithm (alg) is none of"},
		"None":                 {`{"alg":"None","kid":"rsa"}`, none, "algorithm (alg) is none of"},
		"no alg":               {`{"kid":"rsa"}`, none, "algorithm (alg) is none of"},
		"HS256, public PEM":    {`{"alg":"HS256","kid":"rsa"}`, mac(public), "algorithm (alg) is none of"},
		"HS256, public DER":    {`{"alg":"HS256","kid":"rsa"}`, mac(der), "algorithm (alg) is none of"},
		"RS512":                {`{"alg":"RS512","kid":"rsa"}`, signRSA, "algorithm (alg) is none of"},
		"ES256, RSA key":       {`{"alg":"ES256","kid":"rsa"}`, signEC, "ES256 is not that of its key"},
		"RS256, EC key":        {`{"alg":"RS256","kid":"` + newest.KeyID + `"}`, signRSA, "RS256 is not that of its key"},
		"ES384, P-256 key":     {`{"alg":"ES384","kid":"` + newest.KeyID + `"}`, signEC, "ES384 is not that of its key"},
		"EdDSA, EC key":        {`{"alg":"EdDSA","kid":"` + newest.KeyID + `"}`, signEC, "EdDSA is not that of its key"},
		"PS256, not of issuer": {`{"alg":"PS256","kid":"rsa"}`, signPSS, "PS256 is not that of its key, or of its issuer"},
		"PS256, RS256 key":     {`{"alg":"PS256","kid":"rs256-only"}`, signPSS, "PS256 is not that of its key"},
		"key of another kid":   {`{"alg":"RS256","kid":"rsa"}`, signEC, "signature does not verify"},
		"no signature":         {`{"alg":"RS256","kid":"rsa"}`, none, "cannot"},
		"no kid":               {`{"alg":"RS256"}`, signRSA, "no key id (kid)"},
		"kid is a number":      {`{"alg":"RS256","kid":7}`, signRSA, "no key id (kid)"},
		"long kid": {`{"alg":"RS256","kid":"` + strings.Repeat("k", maxKeyID+1) + `"}`, signRSA,
			"no key id (kid)"},
		"kid unknown":           {`{"alg":"RS256","kid":"RSA"}`, signRSA, "no key of its key id (kid)"},
		"jwk":                   {`{"alg":"RS256","kid":"rsa","jwk":{"kty":"oct","k":"AA"}}`, signRSA, "the parameter jwk"},
		"jku":                   {`{"alg":"RS256","kid":"rsa","jku":"https://a.example"}`, signRSA, "the parameter jku"},
		"x5u":                   {`{"alg":"RS256","kid":"rsa","x5u":"https://a.example"}`, signRSA, "the parameter x5u"},
		"x5c":                   {`{"alg":"RS256","kid":"rsa","x5c":["AA"]}`, signRSA, "the parameter x5c"},
		"x5c is null":           {`{"alg":"RS256","kid":"rsa","x5c":null}`, signRSA, "the parameter x5c"},
		"crit":                  {`{"alg":"RS256","kid":"rsa","crit":["b64"]}`, signRSA, "the parameter crit"},
		"b64":                   {`{"alg":"RS256","kid":"rsa","b64":false}`, signRSA, "the parameter b64"},
		"zip":                   {`{"alg":"RS256","kid":"rsa","zip":"DEF"}`, signRSA, "the parameter zip"},
		"type of another token": {`{"alg":"RS256","kid":"rsa","typ":"at+jwt"}`, signRSA, "type (typ) is not JWT"},
		"alg twice":             {`{"alg":"none","alg":"RS256","kid":"rsa"}`, signRSA, "a name twice"},
		"large header": {`{"alg":"RS256","kid":"rsa","a":"` + strings.Repeat("a", maxHeader) + `"}`, signRSA,
			"more than 1024"},
		"header is a list": {`[]`, signRSA, "not a JSON object"},
		"header is null":   {`null`, signRSA, "not a JSON object"},
		"header is empty":  {``, signRSA, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) { b.refused(t, encode(test.header, payload, test.sign), failure.Denied, test.want) })
	}
}

func TestMalformedTokens(t *testing.T) {
	b := newBench(t, nil)
	key := b.issuer.Key()
	header := `{"alg":"ES256","kid":"` + key.KeyID + `"}`
	sign := signES256(t, key)
	payload := b.payload(t, map[string]any{"secret": secretClaim})
	with := func(more string) string { return encode(header, strings.TrimSuffix(payload, "}")+","+more+"}", sign) }
	good := with(`"a":{"b":[1,2.5,true,null]}`)
	caller := b.accepted(t, good)
	if got := fmt.Sprint(caller.Claims["a"]); got != "map[b:[1 2.5 true <nil>]]" {
		t.Errorf("claim a is %s", got)
	}
	parts := strings.Split(good, ".")
	nested := func(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }
	b.accepted(t, with(`"deep":`+nested(7)))
	for name, test := range map[string]struct{ token, want string }{
		"empty":               {"", "not a JWT in compact form"},
		"two parts":           {parts[0] + "." + parts[1], "not a JWT in compact form"},
		"four parts":          {good + ".AA", "not a JWT in compact form"},
		"JWE":                 {"a.b.c.d.e", "not a JWT in compact form"},
		"JSON":                {`{"payload":"","signature":""}`, "not a JWT in compact form"},
		"oversized":           {strings.Repeat("a", maxToken+1), "more than 16384"},
		"oversized claims":    {with(`"big":"` + strings.Repeat("b", maxToken) + `"`), "more than 16384"},
		"padding":             {parts[0] + "=." + parts[1] + "." + parts[2], "not in base64url"},
		"newline":             {parts[0] + "." + parts[1] + "." + parts[2] + "\n", "not in base64url"},
		"standard base64":     {parts[0] + "." + parts[1] + ".+/" + parts[2], "not in base64url"},
		"space before":        {" " + good, "not in base64url"},
		"duplicate claim":     {with(`"sub":"another"`), "a name twice"},
		"duplicate, escaped":  {with(`"s\u0075b":"another"`), "a name twice"},
		"duplicate, deeper":   {with(`"a":{"b":1,"b":2}`), "a name twice"},
		"deep":                {with(`"deep":` + nested(8)), "nested deeper than 8"},
		"very deep":           {with(`"deep":` + nested(5000)), "nested deeper than 8"},
		"many elements":       {with(`"many":[` + strings.Repeat("1,", 2000) + `1]`), "more than 2000 elements"},
		"54 bits":             {with(`"n":9007199254740992`), "more than 53 bits"},
		"-54 bits":            {with(`"n":-9007199254740992`), "more than 53 bits"},
		"1e300":               {with(`"n":1e300`), "more than 53 bits"},
		"1e999":               {with(`"n":1e999`), "more than 53 bits"},
		"not UTF-8":           {with("\"n\":\"\xff\""), "not UTF-8"},
		"not JSON":            {with(`"n":` + secretClaim), "not JSON"},
		"trailing":            {encode(header, payload+"{}", sign), "not JSON"},
		"payload is a string": {encode(header, `"`+secretClaim+`"`, sign), "not a JSON object"},
		"payload is null":     {encode(header, "null", sign), "not a JSON object"},
		"payload changed": {parts[0] + "." + strings.Split(with(`"a":1`), ".")[1] + "." + parts[2],
			"signature does not verify"},
	} {
		t.Run(name, func(t *testing.T) { b.refused(t, test.token, failure.Denied, test.want) })
	}
}

// TestUnusedBits verifies that the last character of a part has one form alone.
func TestUnusedBits(t *testing.T) {
	b := newBench(t, nil)
	token := b.mint(t, nil)
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1]) // of 64 bytes: 4 of its 6 bits are unused
	b.refused(t, token[:len(token)-1]+string(alphabet[last^1]), failure.Denied, "not in base64url")
}

// TestMalleatedSignature verifies that the second signature of an ECDSA token does not make it another token.
func TestMalleatedSignature(t *testing.T) {
	b := newBench(t, nil)
	token := b.mint(t, nil)
	cut := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[cut+1:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(signature[32:])
	other := token[:cut+1] + base64.RawURLEncoding.EncodeToString(signature)
	first, second := b.accepted(t, token), b.accepted(t, other)
	if token == other || first.Token.ID != second.Token.ID {
		t.Errorf("the second signature has token id %x, want %x", second.Token.ID, first.Token.ID)
	}
	if third := b.accepted(t, b.mint(t, nil)); third.Token.ID == first.Token.ID {
		t.Error("another token has the same id")
	}
}

// fixture is a file of testdata: the claims of a token as a vendor publishes them.
type fixture struct {
	Sources  []string
	Notes    string
	Lifetime int64 // seconds from iat to exp
	Before   int64 // seconds from nbf to iat
	List     bool  `json:"audience-is-list"`
	Claims   map[string]any
}

func readFixture(t *testing.T, name string) fixture {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var f fixture
	if err := json.Unmarshal(data, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Sources) == 0 {
		t.Errorf("fixture %s names no source", name)
	}
	return f
}

// all returns the claims of a fixture at a time, with changes.
func (f fixture) all(now time.Time, changes map[string]any) map[string]any {
	claims := maps.Clone(f.Claims)
	claims["aud"] = audience
	if f.List {
		claims["aud"] = []string{audience}
	}
	claims["iat"], claims["nbf"], claims["exp"] = now.Unix(), now.Unix()-f.Before, now.Unix()+f.Lifetime
	maps.Copy(claims, changes)
	return claims
}

func TestTypes(t *testing.T) {
	for name, test := range map[string]struct {
		uses    int
		subject string
		missing []string
	}{
		"github": {1, "repo:octo-org/octo-repo:environment:prod", []string{"repository", "repository_id",
			"repository_owner", "repository_owner_id", "ref", "sha", "workflow_ref", "event_name", "run_id", "run_attempt"}},
		"gitlab": {32, "project_path:my-group/my-project:ref_type:branch:ref:feature-branch-1", []string{"project_id",
			"project_path", "namespace_id", "namespace_path", "ref", "ref_type", "ref_protected", "sha", "pipeline_id",
			"pipeline_source", "job_id"}},
		"kubernetes": {32, "system:serviceaccount:kube-system:coredns", []string{"kubernetes.io"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, func(i *Issuer) { i.Type = name })
			f := readFixture(t, name)
			now := b.clock.time()
			caller := b.accepted(t, b.issuer.Mint(t, f.all(now, nil)))
			if caller.Issuer != b.issuer.URL || caller.Subject != test.subject || caller.Admin {
				t.Errorf("caller is %+v", caller)
			}
			if caller.Token.Uses != test.uses {
				t.Errorf("token is good for %d requests, want %d", caller.Token.Uses, test.uses)
			}
			for claim := range f.Claims {
				if _, has := caller.Claims[claim]; !has {
					t.Errorf("caller has no claim %s", claim)
				}
			}
			for _, claim := range test.missing {
				for _, bad := range []any{nil, "", 7, true, []any{"x"}} {
					b.refused(t, b.issuer.Mint(t, f.all(now, map[string]any{claim: bad})), failure.Denied, claim)
				}
			}
			for other := range types {
				if other == name || other == "other" {
					continue
				}
				token := b.issuer.Mint(t, readFixture(t, other).all(now, nil))
				b.refused(t, token, failure.Denied, "(type "+name+")")
			}
		})
	}
}

// TestImmutableSubject verifies that a token of GitHub whose subject has the ids of owner and repository is accepted
// (https://docs.github.com/en/actions/reference/security/oidc#immutable-subject-claims).
func TestImmutableSubject(t *testing.T) {
	b := newBench(t, func(i *Issuer) { i.Type = "github" })
	const subject = "repo:octo-org@65/octo-repo@74:environment:prod"
	changes := map[string]any{"sub": subject}
	token := b.issuer.Mint(t, readFixture(t, "github").all(b.clock.time(), changes))
	if got := b.accepted(t, token); got.Subject != subject {
		t.Errorf("subject is %s", got.Subject)
	}
}

func TestKubernetesServiceAccount(t *testing.T) {
	b := newBench(t, func(i *Issuer) { i.Type = "kubernetes" })
	f := readFixture(t, "kubernetes")
	private := func(namespace, name, uid any) map[string]any {
		return map[string]any{"kubernetes.io": map[string]any{"namespace": namespace,
			"serviceaccount": map[string]any{"name": name, "uid": uid}}}
	}
	mint := func(changes map[string]any) string { return b.issuer.Mint(t, f.all(b.clock.time(), changes)) }
	b.accepted(t, mint(private("kube-system", "coredns", "1"))) // of no pod, as kubectl create token makes it
	b.refused(t, mint(private("", "coredns", "1")), failure.Denied, "lacks the namespace")
	b.refused(t, mint(private("kube-system", nil, "1")), failure.Denied, "lacks the namespace, or the name")
	b.refused(t, mint(private("kube-system", "coredns", 1)), failure.Denied, "or the name or uid")
	b.refused(t, mint(private("kube-system", "other", "1")), failure.Denied, "another service account")
	b.refused(t, mint(private("other", "coredns", "1")), failure.Denied, "another service account")
	b.refused(t, mint(map[string]any{"kubernetes.io": map[string]any{"serviceaccount": 7}}), failure.Denied, "lacks")
	year := map[string]any{"exp": b.clock.time().AddDate(1, 0, 0).Unix()} // the API server's own tokens
	b.refused(t, mint(year), failure.Denied, "valid for longer than 24h0m0s")
}

// TestFiveImagesInOneJob verifies that a job of GitLab can sign five images by the one token that it has.
func TestFiveImagesInOneJob(t *testing.T) {
	b := newBench(t, func(i *Issuer) { i.Type = "gitlab" })
	token := b.issuer.Mint(t, readFixture(t, "gitlab").all(b.clock.time(), nil))
	first := b.accepted(t, token)
	for range 4 {
		b.clock.add(10 * time.Minute)
		next := b.accepted(t, token)
		if *next.Token != *first.Token || next.Token.Uses != 32 {
			t.Errorf("token is %+v, want %+v with 32 uses", next.Token, first.Token)
		}
	}
}

func TestUses(t *testing.T) {
	yes, no := true, false
	for _, test := range []struct {
		kind   string
		oneUse *bool
		number int
		want   int
	}{
		{"github", nil, 0, 1}, {"other", nil, 0, 1}, {"gitlab", nil, 0, 32}, {"kubernetes", nil, 0, 32},
		{"github", &no, 0, 32}, {"other", &no, 0, 32}, {"gitlab", &yes, 0, 1}, {"kubernetes", &yes, 1, 1},
		{"github", nil, 5, 5}, {"gitlab", nil, 5, 5}, {"gitlab", &no, 1000, 1000},
	} {
		i := Issuer{Type: test.kind, OneUse: test.oneUse, RequestsPerToken: test.number}
		if got := i.uses(); got != test.want {
			t.Errorf("%+v: token is good for %d requests, want %d", test, got, test.want)
		}
	}
}

func TestUsableKeys(t *testing.T) {
	curve := func(c elliptic.Curve) *ecdsa.PublicKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &key.PublicKey
	}
	p256 := curve(elliptic.P256())
	wide := func(bits uint) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: p256, KeyID: "p256", Use: "sig"}, {Key: curve(elliptic.P384()), KeyID: "p384"},
		{Key: wide(2048), KeyID: "rsa-2048"}, {Key: wide(4096), KeyID: "rsa-4096"},
		{Key: curve(elliptic.P521()), KeyID: "p521"}, {Key: wide(2047), KeyID: "rsa-2047"},
		{Key: wide(4097), KeyID: "rsa-4097"}, {Key: p256, KeyID: "encryption", Use: "enc"}, {Key: p256},
		{Key: []byte("0123456789abcdef"), KeyID: "secret"},
	}}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	read, err := readKeySet(data)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(read.keys))
	if want := []string{"p256", "p384", "rsa-2048", "rsa-4096"}; !slices.Equal(got, want) {
		t.Errorf("usable keys are %v, want %v", got, want)
	}
}

func FuzzReadToken(f *testing.F) {
	none := func([]byte) []byte { return make([]byte, 64) }
	const header = `{"alg":"ES256","kid":"k"}`
	const payload = `{"iss":"https://issuer.example.com","exp":1,"a":[1.5,{"b":null}]}`
	for _, seed := range []string{
		"", ".", "..", "...", "e30.e30.e30", encode(header, payload, none), encode(payload, header, none),
		encode(`{"alg":"none"}`, payload, none), encode(header, `{"a":1,"a":2}`, none),
		encode(header, strings.Repeat("[", 100), none), encode(header, `{"a":9007199254740992}`, none),
		encode(`{"alg":"RS256","kid":"k","crit":["b64"],"b64":false}`, payload, none),
		encode(header, "\xff", none), encode(header, `{"a":1e999}`, none),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, compact string) {
		read, err := readToken(compact)
		if err != nil {
			checkSecret(t, err, compact)
			return
		}
		if len(compact) > maxToken || strings.Count(compact, ".") != 2 || read.keyID == "" ||
			!slices.Contains(algorithms, read.algorithm) {
			t.Errorf("token was read: %+v", read)
		}
		if read.id != sha256.Sum256([]byte(compact[:strings.LastIndexByte(compact, '.')])) {
			t.Error("id is not the hash of header and payload")
		}
		if name := read.signed.Signatures[0].Header; name.KeyID != read.keyID || name.Algorithm != string(read.algorithm) {
			t.Errorf("library read kid %q and alg %q", name.KeyID, name.Algorithm)
		}
		if _, err := json.Marshal(read.claims); err != nil {
			t.Errorf("claims cannot be encoded: %v", err)
		}
	})
}
