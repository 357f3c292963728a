package sign

import (
	"debug/elf"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestBinaries verifies that all programs are position-independent, and that their relocations are resolved and made
// read-only before they start (full RELRO); and that the Makefile builds them in the same way.
func TestBinaries(t *testing.T) {
	softhsmtest.Parallel(t)
	for _, name := range []string{"notation-hsm", "hsm-image", "hsm-broker", "sigstore-kms-hsm"} {
		program, err := elf.Open(softhsmtest.Build(t, name))
		if err != nil {
			t.Fatal(err)
		}
		defer program.Close()
		if program.Type != elf.ET_DYN {
			t.Errorf("%s is of type %s, not position-independent", name, program.Type)
		}
		if !slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_GNU_RELRO }) {
			t.Errorf("%s has no segment that is made read-only", name)
		}
		if flags, err := program.DynValue(elf.DT_FLAGS); err != nil || len(flags) != 1 ||
			elf.DynFlag(flags[0])&elf.DF_BIND_NOW == 0 {
			t.Errorf("%s is bound while it runs: %v, %v", name, flags, err)
		}
	}
	made := softhsmtest.Run(t, "make", "-C", softhsmtest.Root(), "--no-print-directory", "-n", "build", "VERSION=1")
	want := strings.Replace(strings.Join(softhsmtest.Hardened[1:], " '"), "-s -w ", "-s -w -X main.version=1 ", 1)
	if !strings.Contains(made, softhsmtest.Hardened[0]) || !strings.Contains(made, want) {
		t.Errorf("make build runs %s, without %s", made, want)
	}
}
