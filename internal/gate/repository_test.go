package gate

import "testing"

// TestRepository spells a repository in full, without tag and digest.
func TestRepository(t *testing.T) {
	t.Parallel()
	const digest = "@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	for image, want := range map[string]string{
		"alpine":                              "docker.io/library/alpine",
		"team/app:2":                          "docker.io/team/app",
		"index.docker.io/alpine:3":            "docker.io/library/alpine",
		"docker://alpine:3":                   "docker.io/library/alpine",
		"registry.example.com/app":            "registry.example.com/app",
		"registry.example.com:8443/team/a:v1": "registry.example.com:8443/team/a",
		"127.0.0.1:5000/app:v1":               "127.0.0.1:5000/app",
		"localhost/app:v1" + digest:           "localhost/app",
		"registry.example.com/app" + digest:   "registry.example.com/app",
	} {
		if got, err := Repository(image); err != nil || got != want {
			t.Errorf("%s: %s, %v", image, got, err)
		}
	}
	for _, image := range []string{"oci:dir:v1", "docker-daemon:app:v1", "Not A Name", "", "-it",
		digest[len("@sha256:"):]} {
		if got, err := Repository(image); err == nil {
			t.Errorf("%q: %s", image, got)
		}
	}
}
