package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// agent measures signatures through 'hsm-broker agent'. It gives this process another user's configuration.
func (b *bench) agent() {
	f := fixture{bench: b}
	t := b.newToken(b.parts, 10)
	f.Setenv("SOFTHSM2_CONF", filepath.Join(t.Dir, "softhsm2.conf"))
	registry, notation := oci.StartRegistry(f), softhsmtest.NewNotation(f, t.Token)
	for _, k := range t.keys {
		softhsmtest.Run(f, b.parts.plugin, "cert", "import", k.uri, filepath.Join(t.Dir, k.spec+".pem"))
	}
	agent := softhsmtest.StartAgent(f, t.Token)
	through := usesAgent(agent)
	image := func(name string) string {
		sum, err := oci.PushImage(b.ctx, registry+"/"+name+":v1", name)
		if err != nil {
			f.Fatal(err)
		}
		return registry + "/" + name + "@" + sum.String()
	}
	sign := func(k key, image string, more ...string) contender {
		return contender{command: append([]string{notation.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id",
			"broker:" + k.label, image}, more...)}
	}

	softhsmtest.Run(f, notation.Program, "cert", "generate-test", "--default", "key-file")
	k := t.keys[1] // RSA-2048, as the key file
	both := image("both")
	r := b.race(50, sign(k, both).with(through...), contender{command: []string{notation.Program, "sign",
		"--insecure-registry", "--key", "key-file", both}})
	b.add(row{
		name: "`notation sign` through the agent, ms", ours: spread(r[0].milliseconds),
		other: "key file: " + spread(r[1].milliseconds),
	}.ratio(r[0].milliseconds.ratio(r[1].milliseconds), "a key file", within(1.35)))

	b.agentThroughput(t, agent)
	b.agentAtOnce(t, through)
	agent.Stop()
	b.agentCalls(t, image, sign)
	b.agentDelay(t)
}

// usesAgent returns the environment of those who sign through an agent: they have neither a module nor a PIN.
func usesAgent(agent *softhsmtest.Agent) []string {
	return []string{"NOTATION_HSM_BROKER=unix:" + agent.Socket, "NOTATION_HSM_MODULE_PATH=", "NOTATION_HSM_PIN="}
}

// spiedAgent starts an agent with a module behind the shim, and returns the environment of its users.
func (b *bench) spiedAgent(t *token, environment ...string) (through []string, end func() string) {
	f := fixture{bench: b}
	for _, variable := range environment {
		name, value, _ := strings.Cut(variable, "=")
		f.Setenv(name, value)
		defer f.Setenv(name, "")
	}
	behind := *t.Token
	behind.Module = b.parts.shim
	agent := softhsmtest.StartAgent(f, &behind)
	return usesAgent(agent), agent.Stop
}

// requestThrough writes a request for a signature by a key of the agent, and returns the file.
func (b *bench) requestThrough(t *token, k key) string {
	jws := map[string]string{"EC-256": "ES256", "RSA-2048": "PS256"}[k.spec]
	request, err := json.Marshal(map[string]any{
		"contractVersion": "1.0", "keyId": "broker:" + k.label, "keySpec": k.spec, "hashAlgorithm": "SHA-256",
		"payload": softhsmtest.SigningInput(jws, 1),
	})
	if err != nil {
		panic(err)
	}
	file := filepath.Join(t.Dir, k.spec+"-agent.json")
	write(fixture{bench: b}, file, string(request))
	return file
}

// agentCalls counts the calls to the module for one more signature, and for the description of a key.
func (b *bench) agentCalls(t *token, image func(string) string, sign func(key, string, ...string) contender) {
	f := fixture{bench: b}
	log := filepath.Join(f.TempDir(), "calls")
	through, end := b.spiedAgent(t, "SHIM_LOG="+log)
	defer end()
	for _, k := range t.keys {
		var counts []string
		met := true
		for _, format := range []string{"jws", "cose"} {
			c := sign(k, image(strings.ToLower(k.spec)+format), "--signature-format", format).with(through...)
			b.race(0, c)
			before := len(softhsmtest.Calls(f, log))
			b.race(0, c)
			made := softhsmtest.Calls(f, log)[before:]
			counts = append(counts, fmt.Sprint(len(made)))
			met = met && slices.Equal(made, []string{"C_SignInit", "C_Sign"})
		}
		b.add(row{name: k.spec + ", agent: calls per signature, JWS and COSE", ours: strings.Join(counts, ", "),
			goal: goal(met, "exactly 2")})
	}
	request := filepath.Join(t.Dir, "describe.json")
	write(f, request, `{"contractVersion":"1.0","keyId":"broker:`+t.keys[0].label+`"}`)
	before := len(softhsmtest.Calls(f, log))
	b.race(0, contender{command: []string{b.parts.plugin, "describe-key"}, stdin: request}.with(through...))
	n := len(softhsmtest.Calls(f, log)) - before
	b.add(row{name: "agent: calls per `describe-key`", ours: fmt.Sprint(n), goal: goal(n == 0, "none")})
}

// agentDelay measures one signature on a module that takes 5 ms for a call, with the agent and without.
func (b *bench) agentDelay(t *token) {
	through, end := b.spiedAgent(t, "SHIM_DELAY_MS=5")
	defer end()
	for _, k := range t.keys {
		r := b.race(30,
			contender{command: []string{b.parts.plugin, "generate-signature"}, stdin: b.requestThrough(t, k)}.with(through...),
			b.signers(t, k, b.parts.shim, "SHIM_DELAY_MS=5")[0])
		b.add(row{
			name: k.spec + ", agent: `generate-signature` with 5 ms for a call, ms", ours: spread(r[0].milliseconds),
			other: "without the agent: " + spread(r[1].milliseconds),
		}.ratio(r[0].milliseconds.ratio(r[1].milliseconds), "without the agent", within(0.25)))
	}
}

// agentAtOnce measures how long many processes take that sign at once through one agent, against the same number one
// after another.
func (b *bench) agentAtOnce(t *token, through []string) {
	for _, k := range t.keys {
		c := contender{command: []string{b.parts.plugin, "generate-signature"}, stdin: b.requestThrough(t, k)}
		wall, _ := b.crowd(c.with(through...))
		b.add(row{
			name: fmt.Sprintf("%s, agent: %d processes at once: time, ms", k.spec, crowd), ours: spread(wall[1]),
			other: "one after another: " + spread(wall[0]),
		}.ratio(wall[1].ratio(wall[0]), "one after another", within(1.2)))
	}
}

// agentThroughput measures signatures a second through the socket, against those of the module's process alone. The
// client and the agent have the same processors as the module, and the agent verifies each signature.
func (b *bench) agentThroughput(t *token, agent *softhsmtest.Agent) {
	conf := contender{environment: []string{"SOFTHSM2_CONF=" + filepath.Join(t.Dir, "softhsm2.conf")}}
	for _, k := range t.keys {
		ours := []string{"-label", k.label, "-goroutines", "64", "-seconds", "1"}
		r := b.raceRates(11, conf, [][]string{
			append([]string{self(), "loop", "-socket", agent.Socket}, ours...),
			append([]string{self(), "loop", "-with", "worker", "-module", t.Module, "-pin", softhsmtest.PIN}, ours...),
		})
		var least limit
		if k.spec == "RSA-2048" {
			least = atLeast(0.85)
		}
		b.add(row{
			name: k.spec + ", agent, 64 clients: signatures/s", ours: spread(r[0]), other: "worker alone: " + spread(r[1]),
		}.ratio(r[0].ratio(r[1]), "the worker alone", least))
	}
}
