package sign

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A pipeline's secrets. They are long, so that no digest has them by chance.
const (
	brokerToken      = "token-of-the-pipeline"
	registryPassword = "password-of-the-registry"
)

// TestPipelines runs the shell that stands in deploy/pipelines, as GitHub Actions, GitLab CI, Tekton and Jenkins would:
// with their settings, a real registry, and the real notation and notation-hsm. Stand-ins are the broker, whose API it
// has; docker and buildah, which say that they pushed an image that this test pushes; and kubectl, which deploys
// nothing. A signed image is deployed and an unsigned one is not, and the token stays where it was.
func TestPipelines(t *testing.T) {
	softhsmtest.Parallel(t)
	for name, open := range map[string]func(*machine) ci{"github": openGitHub, "gitlab": openGitLab,
		"tekton": openTekton, "jenkins": openJenkins} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			pipeline := open(m)
			if err := pipeline.publish(); err != nil {
				t.Fatalf("publish: %v\n%s", err, m.output.String())
			}
			if err := pipeline.deploy(""); err != nil {
				t.Fatalf("deploy: %v\n%s", err, m.output.String())
			}
			if want := "set image deployment/app app=" + m.repository + "@" + m.digest; m.deployed() != want {
				t.Errorf("what is deployed is %q, not %q", m.deployed(), want)
			}
			softhsmtest.Run(t, softhsmtest.Build(t, "notation"), "verify", m.repository+"@"+
				m.digest) // also with the trust of this test

			unsigned, err := oci.PushImage(t.Context(), m.repository+":unsigned", "unsigned")
			if err != nil {
				t.Fatal(err)
			}
			before := m.deployed()
			if err := pipeline.deploy(unsigned.String()); err == nil || m.deployed() != before {
				t.Errorf("an unsigned image is deployed: %v", err)
			}
			if !strings.Contains(m.output.String(), "no signature is associated with") {
				t.Errorf("it does not say why:\n%s", m.output.String())
			}
			if err := pipeline.deploy(m.strangers); err == nil || m.deployed() != before {
				t.Errorf("an image is deployed whose signer the released commit alone trusts: %v", err)
			}
			m.keepsSecrets()

			m.secrets["BROKER_TOKEN"] = "not-" + brokerToken
			if err := pipeline.publish(); err == nil || m.broker.refused == 0 {
				t.Error("signing works with a wrong token")
			}
			m.keepsSecrets()
		})
	}
}

// ci is a system that runs a pipeline.
type ci interface {
	publish() error
	deploy(digest string) error // "" is what publish has pushed
}

// machine is where the jobs run.
type machine struct {
	t                              *testing.T
	folder, work, repository, host string
	digest                         string // of the image that docker and buildah push
	// the digest of one whose signer only the project's own manifest trusts
	strangers string
	manifest  string // that of those who run the cluster
	broker    *teamBroker
	secrets   map[string]string // by their names in the CI
	env       map[string]string // what is set up on the machine
	output    bytes.Buffer      // of all jobs, with each command that the shell runs
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, folder: t.TempDir(), secrets: map[string]string{
		"BROKER_TOKEN": brokerToken, "REGISTRY_USER": "ci", "REGISTRY_PASSWORD": registryPassword,
	}}
	m.work = filepath.Join(m.folder, "work")
	m.host = strings.Replace(oci.StartRegistry(t), "127.0.0.1", "localhost", 1) // which notation speaks plain HTTP to
	m.repository = m.host + "/team/app"
	pushed, err := oci.PushImage(t.Context(), m.repository+":v1.0", "hello")
	if err != nil {
		t.Fatal(err)
	}
	m.digest = pushed.String()

	// A broker with two keys, and a manifest that trusts the certificate of one.
	m.broker = newTeamBroker(t, brokerToken, "release", "stranger")
	n := softhsmtest.NewNotation(t, &softhsmtest.Token{})
	for name, value := range map[string]string{"NOTATION_HSM_BROKER": m.broker.address, "NOTATION_HSM_PIN": "",
		"NOTATION_HSM_BROKER_CA": m.broker.ca, "NOTATION_HSM_BROKER_TOKEN": "gitlab:BROKER_TOKEN",
		"BROKER_TOKEN": brokerToken} {
		softhsmtest.Setenv(t, name, value)
	}
	export := func(key, file string) {
		softhsmtest.Write(t, file, softhsmtest.Run(t, n.Plugin, "cert", "export", "broker:"+key))
	}
	pem := filepath.Join(m.folder, "release.pem")
	export("release", pem)
	m.manifest = filepath.Join(m.folder, "trust", "trust.yaml")
	softhsmtest.Run(t, n.Plugin, "trust", "init", "--manifest", m.manifest)
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "release", "--manifest", m.manifest, "--scope", m.repository,
		"--cert", pem)
	softhsmtest.Run(t, n.Plugin, "trust", "export", "--manifest", m.manifest)

	// The project's own manifest trusts somebody else, who has signed an image.
	stranger, own := filepath.Join(m.folder, "stranger.pem"), filepath.Join(m.work, "trust.yaml")
	export("stranger", stranger)
	softhsmtest.Run(t, n.Plugin, "trust", "init", "--manifest", own)
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "stranger", "--manifest", own, "--scope", m.repository,
		"--cert", stranger)
	signed, err := oci.PushImage(t.Context(), m.repository+":stranger", "stranger")
	if err != nil {
		t.Fatal(err)
	}
	m.strangers = signed.String()
	softhsmtest.Run(t, n.Plugin, "request", "create", "--key", "broker:stranger", "--image", m.repository+"@"+m.strangers)
	softhsmtest.Run(t, n.Program, "sign", "--plugin", "hsm", "--id", "broker:stranger", "--plugin-config",
		"repository="+m.repository, m.repository+"@"+m.strangers)

	// The programs. Each writes down its arguments first.
	programs := filepath.Join(m.folder, "bin")
	m.program(filepath.Join(programs, "notation"), `exec `+n.Program+` "$@"`)
	m.program(filepath.Join(programs, "notation-hsm"), `exec `+n.Plugin+` "$@"`)
	m.program(filepath.Join(programs, "kubectl"), `echo "$@" >> `+filepath.Join(m.folder, "deployed"))
	m.program(filepath.Join(programs, "docker"), `case "$1" in
login) test "$(cat)" = `+registryPassword+` ;;
buildx) printf '{\n  "containerimage.config.digest": "sha256:0",\n  "containerimage.digest": "%s",\n  '\
'"image.name": "app"\n}\n' `+m.digest+` > pushed.json ;;
esac`)
	m.program(filepath.Join(programs, "buildah"), `case "$1" in
push) printf %s `+m.digest+` > "$3" ;;
esac`)
	config := filepath.Join(m.folder, "config")
	m.program(filepath.Join(config, "notation", "plugins", "hsm", "notation-hsm"), `exec `+n.Plugin+` "$@"`)
	m.env = map[string]string{"PATH": programs + ":" + softhsmtest.Getenv(t, "PATH"), "HOME": m.folder,
		"TMPDIR":           m.mkdir("tmp"),
		"XDG_CONFIG_HOME":  config,
		"NOTATION_HSM_LOG": filepath.Join(m.folder, "log"), "NOTATION_HSM_TIMEOUT": softhsmtest.Patience,
		"SSL_CERT_FILE": m.broker.ca} // as on a machine that trusts the company's CA
	return m
}

func (m *machine) mkdir(name string) string {
	m.t.Helper()
	path := filepath.Join(m.folder, name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) program(path, script string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		m.t.Fatal(err)
	}
	text := fmt.Sprintf("#!/bin/sh\necho \"$0 $*\" >> %s\n%s\n", filepath.Join(m.folder, "arguments"), script)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		m.t.Fatal(err)
	}
}

// shell runs a script with bash and these options. The output has each command with its arguments.
func (m *machine) shell(options, script string, env ...map[string]string) error {
	m.t.Helper()
	file := filepath.Join(m.folder, "script")
	softhsmtest.Write(m.t, file, script)
	cmd := exec.Command("bash", append(strings.Fields(options), "-x", file)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.work, &m.output, &m.output
	for _, list := range append([]map[string]string{m.env}, env...) {
		for name, value := range list {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd.Run()
}

// deployed returns what kubectl was told last.
func (m *machine) deployed() string {
	data, _ := os.ReadFile(filepath.Join(m.folder, "deployed"))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}

// keepsSecrets looks for the token in all that the jobs have written, and in the arguments of what they have run.
func (m *machine) keepsSecrets() {
	m.t.Helper()
	arguments, err := os.ReadFile(filepath.Join(m.folder, "arguments"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, name := range []string{"notation sign", "notation verify", "hsm/notation-hsm generate-signature",
		"notation-hsm request create", "kubectl set image"} {
		if !bytes.Contains(arguments, []byte(name)) {
			m.t.Errorf("%q was not run:\n%s", name, arguments)
		}
	}
	if bytes.Contains(arguments, []byte(registryPassword)) || bytes.Contains(m.output.Bytes(), []byte(brokerToken)) {
		m.t.Errorf("a secret is in the arguments or in the output:\n%s\n%s", arguments, m.output.String())
	}
	searched := 0
	if err := filepath.WalkDir(m.folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.Contains(path, "/secrets/") {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(brokerToken)) {
			m.t.Errorf("the token is in %s", path)
		}
		searched++
		return err
	}); err != nil || searched < 10 {
		m.t.Errorf("%d files were searched: %v", searched, err)
	}
}

// pipelineFile reads a file of deploy/pipelines into one value for each document.
func pipelineFile[T any](t *testing.T, path string) []T {
	t.Helper()
	var list []T
	for _, document := range softhsmtest.Documents(t, filepath.Join(softhsmtest.Root(), "deploy", "pipelines", path)) {
		data, err := yaml.Dump(document)
		if err != nil {
			t.Fatal(err)
		}
		var value T
		if err := yaml.Load(data, &value); err != nil {
			t.Fatal(err)
		}
		list = append(list, value)
	}
	return list
}

// settings replaces the names of the examples, as a reader does.
func (m *machine) settings(env map[string]string) map[string]string {
	env = maps.Clone(env)
	names := strings.NewReplacer("registry.example.com/team/app", m.repository, "registry.example.com", m.host,
		"https://broker.example.com", m.broker.address)
	for name, value := range env {
		env[name] = names.Replace(value)
	}
	return env
}

// github runs a workflow.
type github struct {
	*machine
	Env  map[string]string
	Jobs map[string]struct {
		Env, Outputs, Permissions map[string]string
		Steps                     []struct {
			ID, Name, Uses, Run string
			Env                 map[string]string
		}
	}
	outputs map[string]string // by "steps.ID.outputs.NAME" and "needs.JOB.outputs.NAME"
}

func openGitHub(m *machine) ci {
	g := pipelineFile[github](m.t, "github/release.yml")[0]
	g.machine, g.outputs = m, map[string]string{}
	return &g
}

var githubExpression = regexp.MustCompile(`\$\{\{ *([^ }]+) *\}\}`)

// evaluate replaces the expressions in the values of an environment.
func (g *github) evaluate(env map[string]string) map[string]string {
	g.t.Helper()
	env = maps.Clone(env)
	for name, value := range env {
		env[name] = githubExpression.ReplaceAllStringFunc(value, func(text string) string {
			expression := githubExpression.FindStringSubmatch(text)[1]
			result, ok := g.outputs[expression]
			if secret, is := strings.CutPrefix(expression, "secrets."); is {
				result, ok = g.secrets[secret]
			}
			if expression == "vars.TRUST_MANIFEST" {
				text, err := os.ReadFile(g.manifest)
				result, ok = string(text), err == nil
			}
			if !ok {
				g.t.Errorf("nothing has set %s", text)
			}
			return result
		})
	}
	return env
}

func (g *github) job(name string) error {
	g.t.Helper()
	job := g.Jobs[name]
	if len(job.Steps) == 0 {
		g.t.Fatalf("the job %q has no steps", name)
	}
	temp := g.mkdir("runner-temp") // a new one for each job
	if err := os.RemoveAll(temp); err != nil {
		g.t.Fatal(err)
	}
	g.mkdir("runner-temp")
	for _, step := range job.Steps {
		if step.Run == "" {
			if !strings.HasPrefix(step.Uses, "actions/checkout@") { // which is done
				g.t.Errorf("%s runs %s", name, step.Uses)
			}
			continue
		}
		output := filepath.Join(g.folder, "github-output")
		softhsmtest.Write(g.t, output, "")
		own := map[string]string{"GITHUB_OUTPUT": output, "GITHUB_REF_NAME": "v1.0", "RUNNER_TEMP": temp,
			"GITHUB_STEP_SUMMARY": filepath.Join(temp, "summary")}
		if job.Permissions["id-token"] == "write" {
			own["ACTIONS_ID_TOKEN_REQUEST_URL"] = g.broker.address + "/github?api-version=2.0"
			own["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = g.secrets["BROKER_TOKEN"]
		}
		if err := g.shell("-eu", step.Run, own, g.settings(g.Env), g.settings(g.evaluate(job.Env)),
			g.settings(g.evaluate(step.Env))); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		data, err := os.ReadFile(output)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			g.outputs["steps."+step.ID+".outputs."+key] = value
		}
	}
	for key, value := range g.evaluate(job.Outputs) {
		g.outputs["needs."+name+".outputs."+key] = value
	}
	return nil
}

func (g *github) publish() error { return g.job("publish") }

func (g *github) deploy(digest string) error {
	if digest != "" {
		g.outputs["needs.publish.outputs.digest"] = digest
	}
	return g.job("deploy")
}

// gitlab runs the jobs of a pipeline.
type gitlab struct {
	*machine
	jobs   map[string]gitlabJob
	dotenv map[string]string
}

type gitlabJob struct {
	Variables map[string]string
	IDTokens  map[string]struct{ Aud string } `json:"id_tokens"`
	Script    []string
	Artifacts struct{ Reports struct{ Dotenv string } }
}

func openGitLab(m *machine) ci {
	jobs := map[string]gitlabJob{}
	for name, value := range pipelineFile[map[string]any](m.t, "gitlab/.gitlab-ci.yml")[0] {
		var job gitlabJob
		data, err := json.Marshal(value)
		if err != nil {
			m.t.Fatal(err)
		}
		if name != "stages" && json.Unmarshal(data, &job) != nil {
			m.t.Fatalf("%s is no job: %s", name, data)
		}
		jobs[name] = job
	}
	return &gitlab{m, jobs, map[string]string{}}
}

func (g *gitlab) job(name string, secrets map[string]string) error {
	g.t.Helper()
	job := g.jobs[name]
	if len(job.Script) == 0 {
		g.t.Fatalf("the job %q has no script", name)
	}
	own := map[string]string{"CI_REGISTRY": g.host, "CI_REGISTRY_IMAGE": g.repository,
		"CI_REGISTRY_USER":     g.secrets["REGISTRY_USER"],
		"CI_REGISTRY_PASSWORD": g.secrets["REGISTRY_PASSWORD"], "CI_COMMIT_TAG": "v1.0", "CI_PROJECT_DIR": g.work}
	if err := g.shell("-eu -o pipefail", strings.Join(job.Script, "\n"), own, secrets, g.settings(job.Variables),
		g.dotenv); err != nil {
		return err
	}
	if file := job.Artifacts.Reports.Dotenv; file != "" {
		data, err := os.ReadFile(filepath.Join(g.work, file))
		if err != nil {
			return err
		}
		key, value, _ := strings.Cut(strings.TrimSpace(string(data)), "=")
		g.dotenv[key] = value
	}
	return nil
}

func (g *gitlab) publish() error {
	tokens := map[string]string{}
	for name, token := range g.jobs["publish"].IDTokens {
		if token.Aud == "https://broker.example.com" {
			tokens[name] = g.secrets["BROKER_TOKEN"]
		}
	}
	return g.job("publish", tokens)
}

func (g *gitlab) deploy(digest string) error {
	if digest != "" {
		g.dotenv["DIGEST"] = digest
	}
	return g.job("deploy", map[string]string{"TRUST_MANIFEST": g.manifest})
}

// tekton runs the tasks of a pipeline.
type tekton struct {
	*machine
	resources []tektonResource
}

type tektonResource struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Volumes []struct {
			Name      string
			Projected struct {
				Sources []struct {
					ServiceAccountToken struct{ Audience, Path string } `yaml:"serviceAccountToken"`
				}
			}
			ConfigMap struct{ Name string } `yaml:"configMap"`
		}
		Steps []struct {
			Name, Script string
			Env          []struct{ Name, Value string }
			VolumeMounts []struct {
				Name      string
				MountPath string `yaml:"mountPath"`
			} `yaml:"volumeMounts"`
		}
		Tasks []struct {
			Name    string
			TaskRef struct{ Name string } `yaml:"taskRef"`
			Params  []struct{ Name, Value string }
		}
	}
}

func openTekton(m *machine) ci {
	return &tekton{m, pipelineFile[tektonResource](m.t, "tekton/release.yaml")}
}

func (k *tekton) find(kind, name string) tektonResource {
	k.t.Helper()
	i := slices.IndexFunc(k.resources, func(r tektonResource) bool { return r.Kind == kind && r.Metadata.Name == name })
	if i < 0 {
		k.t.Fatalf("there is no %s %q", kind, name)
	}
	return k.resources[i]
}

var tektonVariable = regexp.MustCompile(`\$\(([a-z.-]+)\)`)

// replace fills in the variables of Tekton.
func (k *tekton) replace(text string, variables map[string]string) string {
	return tektonVariable.ReplaceAllStringFunc(text, func(found string) string {
		value, ok := variables[tektonVariable.FindStringSubmatch(found)[1]]
		if !ok {
			k.t.Errorf("nothing has set %s", found)
		}
		return value
	})
}

func (k *tekton) task(name, digest string) error {
	k.t.Helper()
	run := map[string]string{"params.image": k.repository, "params.tag": "v1.0", "params.tools": "tools",
		"params.tools-digest": "sha256:0",
		"params.key":          "broker:release", "params.broker": k.broker.address, "tasks.publish.results.digest": digest}
	variables := map[string]string{"workspaces.source.path": k.work, "workspaces.registry.path": k.mkdir("registry"),
		"results.digest.path": filepath.Join(k.folder, "digest")}
	var ref string
	for _, task := range k.find("Pipeline", "release").Spec.Tasks {
		if task.Name == name {
			ref = task.TaskRef.Name
			for _, param := range task.Params {
				variables["params."+param.Name] = k.replace(param.Value, run)
			}
		}
	}
	task := k.find("Task", ref)
	for _, step := range task.Spec.Steps {
		env := map[string]string{}
		for _, entry := range step.Env {
			env[entry.Name] = k.replace(entry.Value, variables)
		}
		for _, mount := range step.VolumeMounts {
			path := k.mount(task, mount.Name)
			for key, value := range env {
				env[key] = strings.ReplaceAll(value, mount.MountPath, path)
			}
		}
		if strings.Contains(step.Script, "$(params") {
			k.t.Errorf("the script of %s has parameters pasted in, which run as commands", step.Name)
		}
		if err := k.shell("", step.Script, k.settings(env)); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
	}
	return nil
}

// mount makes the files of a volume as Kubernetes does: links to files of a folder that can be replaced as a whole.
func (k *tekton) mount(task tektonResource, name string) string {
	k.t.Helper()
	for _, volume := range task.Spec.Volumes {
		if volume.Name != name {
			continue
		}
		if volume.ConfigMap.Name == "trust-manifest" {
			return filepath.Dir(k.manifest)
		}
		folder, data := k.mkdir("secrets/token"), k.mkdir("secrets/token/..data")
		for _, source := range volume.Projected.Sources {
			token := source.ServiceAccountToken
			if token.Audience != "https://broker.example.com" {
				k.t.Errorf("the token is for %q", token.Audience)
			}
			softhsmtest.Write(k.t, filepath.Join(data, token.Path), k.secrets["BROKER_TOKEN"])
			link := filepath.Join(folder, token.Path)
			if err := os.RemoveAll(link); err != nil {
				k.t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join("..data", token.Path), link); err != nil {
				k.t.Fatal(err)
			}
		}
		return folder
	}
	k.t.Fatalf("%s has no volume %q", task.Metadata.Name, name)
	return ""
}

func (k *tekton) publish() error { return k.task("publish", "") }

func (k *tekton) deploy(digest string) error {
	if digest == "" {
		data, err := os.ReadFile(filepath.Join(k.folder, "digest"))
		if err != nil {
			return err
		}
		digest = string(data)
	}
	return k.task("deploy", digest)
}

// jenkins runs the stages of a Jenkinsfile.
type jenkins struct {
	*machine
	text string
	env  map[string]string
}

func openJenkins(m *machine) ci {
	data, err := os.ReadFile(filepath.Join(softhsmtest.Root(), "deploy", "pipelines", "jenkins", "Jenkinsfile"))
	if err != nil {
		m.t.Fatal(err)
	}
	j := &jenkins{m, string(data), map[string]string{"TAG_NAME": "v1.0", "WORKSPACE_TMP": m.mkdir("workspace-tmp")}}
	environment, _, _ := strings.Cut(j.text, "stages {")
	for _, found := range regexp.MustCompile(`([A-Z_]+) = '([^']*)'`).FindAllStringSubmatch(environment, -1) {
		j.env[found[1]] = found[2]
	}
	j.env = m.settings(j.env)
	return j
}

// steps matches a step with credentials, or a script in "”'" or in '.
var steps = regexp.MustCompile(`(?s)withCredentials\(\[([^]]*)\]\) \{|sh \'\'\'(.*?)\'\'\'|sh \'([^\']+)\'`)

func (j *jenkins) stage(name string) error {
	j.t.Helper()
	_, stage, found := strings.Cut(j.text, "stage('"+name+"')")
	if !found {
		j.t.Fatalf("there is no stage %q", name)
	}
	stage, _, _ = strings.Cut(stage, "stage('")
	if err := os.RemoveAll(filepath.Join(j.env["WORKSPACE_TMP"], "notation")); err != nil {
		return err
	}
	bound := map[string]string{}
	for _, step := range steps.FindAllStringSubmatch(stage, -1) {
		if step[1] != "" {
			bound = j.bind(step[1])
			continue
		}
		if err := j.shell("-e", strings.ReplaceAll(step[2]+step[3], `\\`, `\`), j.env, bound); err != nil {
			return err
		}
		bound = map[string]string{} // each block has one script
	}
	return nil
}

// bind returns the variables of withCredentials.
func (j *jenkins) bind(text string) map[string]string {
	j.t.Helper()
	id := regexp.MustCompile(`credentialsId: '([a-z-]+)'`).FindStringSubmatch(text)
	variable := func(name string) string {
		return regexp.MustCompile(`\b` + name + `: '([A-Z_]+)'`).FindStringSubmatch(text)[1]
	}
	switch id[1] {
	case "registry":
		return map[string]string{variable("usernameVariable"): j.secrets["REGISTRY_USER"],
			variable("passwordVariable"): j.secrets["REGISTRY_PASSWORD"]}
	case "broker-token":
		file := filepath.Join(j.mkdir("secrets"), "token")
		softhsmtest.Write(j.t, file, j.secrets["BROKER_TOKEN"])
		return map[string]string{variable("variable"): file}
	case "trust-manifest":
		return map[string]string{variable("variable"): j.manifest}
	}
	j.t.Errorf("unknown credentials in %s", text)
	return nil
}

func (j *jenkins) publish() error {
	err := j.stage("publish")
	if data, failed := os.ReadFile(filepath.Join(j.work, "digest")); failed == nil {
		j.env["DIGEST"] = strings.TrimSpace(string(data))
	}
	return err
}

func (j *jenkins) deploy(digest string) error {
	if digest != "" {
		j.env["DIGEST"] = digest
	}
	return j.stage("deploy")
}
