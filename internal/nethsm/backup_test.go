package nethsm

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

func field(length int) []byte {
	return append([]byte{byte(length >> 16), byte(length >> 8), byte(length)}, bytes.Repeat([]byte{7}, length)...)
}

func backup(version byte, fields int, end string) []byte {
	all := append([]byte(backupMagic), version)
	for i := range fields {
		all = append(all, field(16+i*40000)...)
	}
	return append(all, end...)
}

// TestCheckBackup accepts complete backups, and none that was cut anywhere.
func TestCheckBackup(t *testing.T) {
	t.Parallel()
	const end = "\x00\x00\x00" + backupEnd
	whole := backup(1, 7, end)
	for name, good := range map[string][]byte{"version 1": whole, "without entries": backup(1, 5, end),
		"version 0": backup(0, 6, "")} {
		if err := checkBackup(good); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for cut := range len(whole) {
		if cut > 100 && cut < len(whole)-100 && cut%997 != 0 {
			continue
		}
		if checkBackup(whole[:cut]) == nil {
			t.Errorf("the first %d bytes of %d pass for a backup", cut, len(whole))
		}
	}
	for name, bad := range map[string][]byte{
		"nothing":           nil,
		"another file":      []byte("<html>"),
		"another version":   backup(2, 7, end),
		"no empty field":    backup(1, 7, backupEnd),
		"fields missing":    backup(1, 4, end),
		"more behind":       backup(1, 7, end+"\n"),
		"version 0, cut":    backup(0, 6, "")[:60000],
		"version 0, empty":  backup(0, 6, "\x00\x00\x00"),
		"another trailer":   backup(1, 7, "\x00\x00\x00_NETHSM_BACKUP_EMD_"),
		"version 0, no key": backup(0, 2, ""),
	} {
		if checkBackup(bad) == nil {
			t.Errorf("%s passes for a backup", name)
		}
	}
}

// TestBackup returns a complete backup, and fails for one that ends early.
func TestBackup(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	b := warnTo(io.Discard)
	if _, err := b.Backup(t.Context(), s); !failure.Is(err, failure.Invalid) {
		t.Errorf("without a user: %v", err)
	}
	servers[0].AddUser("backup", nethsmtest.Backup, "backup passphrase")
	s.NetHSM.BackupUser, s.NetHSM.BackupPINSource = "backup", "env:TEST_BACKUP"
	if _, err := b.Backup(t.Context(), s); !failure.Is(err, failure.Denied) ||
		!strings.Contains(err.Error(), "has no backup passphrase") {
		t.Errorf("without a backup passphrase: %v", err)
	}
	_, err := openWith(t, b, s).change(t.Context(), request{what: "setting the backup passphrase", method: http.MethodPut,
		path: "/config/backup-passphrase",
		body: []byte(`{"newPassphrase":"the backup passphrase","currentPassphrase":""}`)}, http.StatusNoContent)
	if err != nil {
		t.Fatal(err)
	}
	data, err := b.Backup(t.Context(), s)
	if err != nil || !bytes.HasSuffix(data, []byte(backupEnd)) {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	servers[0].Inject("POST", "/system/backup", 1, nethsmtest.RespondWith(200, typeBytes, string(data[:len(data)-1])))
	if _, err := b.Backup(t.Context(), s); !failure.Is(err, failure.Internal) ||
		!strings.Contains(err.Error(), "does not end like a backup") {
		t.Errorf("one that ends early: %v", err)
	}
	s.NetHSM.BackupUser, s.NetHSM.BackupPINSource = "operator", "env:TEST_OPERATOR"
	if _, err := b.Backup(t.Context(), s); !failure.Is(err, failure.Denied) {
		t.Errorf("as an operator: %v", err)
	}
}
