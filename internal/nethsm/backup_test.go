package nethsm

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"

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

// TestCheckBackup cuts whole backups at every byte of their end, and elsewhere: no part of one passes for a whole one.
func TestCheckBackup(t *testing.T) {
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

// TestBackup takes a whole backup from the NetHSM, and none that ends early.
func TestBackup(t *testing.T) {
	servers, s := start(t, 1)
	servers[0].AddUser("backup", nethsmtest.Backup, "backup passphrase")
	t.Setenv("TEST_BACKUP", "backup passphrase")
	s.NetHSM.BackupUser, s.NetHSM.BackupPINSource = "backup", "env:TEST_BACKUP"
	c, err := newClient(s)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	admin, err := administrator(s)
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.do(t.Context(), request{what: "setting the backup passphrase", method: http.MethodPut,
		path: "/config/backup-passphrase", as: admin,
		body: []byte(`{"newPassphrase":"the backup passphrase","currentPassphrase":""}`)})
	if err != nil || a.status != http.StatusNoContent {
		t.Fatalf("%+v, %v", a, err)
	}
	data, err := Backup(context.Background(), s)
	if err != nil || !bytes.HasSuffix(data, []byte(backupEnd)) {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	servers[0].Inject("POST", "/system/backup", 0, nethsmtest.RespondWith(200, typeBytes, string(data[:len(data)-1])))
	if _, err := Backup(context.Background(), s); err == nil ||
		!strings.Contains(err.Error(), "does not end as a backup") {
		t.Errorf("one that ends early: %v", err)
	}
}
