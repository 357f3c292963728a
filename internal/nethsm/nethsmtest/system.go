package nethsmtest

import (
	"fmt"
	"net/http"
	"time"
)

// version is the software version that /system/info shows.
const version = "5.0"

func getInfo(*call) *reply {
	return answer(map[string]string{"vendor": "Nitrokey GmbH", "product": "NetHSM"})
}

// getHealth serves /health/alive and /health/ready, whose states are in the table.
func getHealth(*call) *reply { return &reply{status: http.StatusOK} }

func getState(c *call) *reply { return answer(map[string]State{"state": c.server.current()}) }

func getDiagnose(c *call) *reply {
	logs := []map[string]string{}
	if c.server.failed {
		logs = append(logs, map[string]string{"level": "error", "msg": "etcd lost its quorum"})
	}
	return answer(map[string]any{"clusterLogs": logs, "clusterState": map[string]bool{"running": !c.server.failed}})
}

// getMetrics serves metrics with the names of a real NetHSM, with strings as their values.
func getMetrics(c *call) *reply {
	counts := c.state.counts()
	metrics := map[string]string{"uptime": fmt.Sprint(int(time.Since(c.server.started).Seconds())), "log warnings": "0",
		"log errors": "0"}
	for _, operation := range []string{"generate", "sign", "decrypt", "encrypt"} {
		metrics[operation] = fmt.Sprint(counts[operation])
	}
	requests := c.server.Requests()
	metrics["http response total"] = fmt.Sprint(len(requests))
	byStatus := map[int]int{}
	for _, r := range requests {
		byStatus[r.Status]++
	}
	for status, n := range byStatus {
		if status != 0 { // this one is being answered
			metrics[fmt.Sprintf("http response %d", status)] = fmt.Sprint(n)
		}
	}
	return answer(metrics)
}

func postProvision(c *call) *reply {
	var wanted struct {
		Unlock string `json:"unlockPassphrase"`
		Admin  string `json:"adminPassphrase"`
		Time   string `json:"systemTime"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if !goodPassphrase(wanted.Unlock) || !goodPassphrase(wanted.Admin) {
		return weakPassphrase()
	}
	t, refusal := parseTime(wanted.Time)
	if refusal != nil {
		return refusal
	}
	c.state.provision(wanted.Unlock, wanted.Admin)
	c.server.clock = time.Until(t)
	return done()
}

// unlockUser is the name under which wrong unlock passphrases are limited; no user can have it.
const unlockUser = "_unlock"

func postUnlock(c *call) *reply {
	if c.server.throttled(unlockUser) {
		return fail(http.StatusTooManyRequests, "too many requests: wait a second after a wrong passphrase")
	}
	passphrase, refusal := c.passphrase()
	if refusal == nil && !c.state.unlockPassphrase.is(passphrase) {
		refusal = fail(http.StatusForbidden, "unlock failed")
	}
	if refusal != nil {
		c.server.failures[unlockUser] = time.Now()
		return refusal
	}
	c.server.locked = false
	return done()
}

func postLock(c *call) *reply {
	c.server.locked = true
	return done()
}

func postRandom(c *call) *reply {
	var wanted struct {
		Length int `json:"length"`
	}
	if refusal := c.decode(&wanted); refusal != nil {
		return refusal
	}
	if wanted.Length < 1 || wanted.Length > 1024 {
		return fail(http.StatusBadRequest, "length must be between 1 and 1024")
	}
	return answer(map[string]string{"random": encode64(randomBytes(wanted.Length))})
}

func getSystemInfo(c *call) *reply {
	return answer(map[string]any{
		"softwareVersion": version, "softwareBuild": "test", "firmwareVersion": "1.0-test", "hardwareVersion": "test",
		"deviceId": c.server.member.ID, "akPub": map[string]string{}, "pcr": map[string]string{},
	})
}

// postReboot restarts the instance at once, locked unless unattended boot is on.
func postReboot(c *call) *reply {
	c.server.boot()
	return done()
}

// postShutdown stops the listener after the response. Restart starts it again.
func postShutdown(c *call) *reply {
	c.server.boot()
	return &reply{status: http.StatusNoContent, cut: true}
}

func postFactoryReset(c *call) *reply {
	c.state.reset()
	c.server.locked, c.server.failed, c.server.unattendedBoot = false, false, false
	return done()
}

// postBackup gives bytes with the outer form of a real backup of version 1: magic, version, fields with their length in
// three bytes (the salt, the version, the domain key, the device's ID and the key of its configuration, and then one
// for each user and key), an empty field that ends them, trailer. What is in the fields is random, as the real content
// cannot be had here.
func postBackup(c *call) *reply {
	if c.state.backupPassphrase == nil {
		return fail(http.StatusPreconditionFailed, "the backup passphrase was not set")
	}
	backup := append([]byte("_NETHSM_BACKUP_"), 1)
	for range 5 + len(c.state.users) + len(c.state.keys) {
		backup = append(backup, 0, 0, 64)
		backup = append(backup, randomBytes(64)...)
	}
	backup = append(backup, "\x00\x00\x00_NETHSM_BACKUP_END_"...)
	return &reply{status: http.StatusOK, contentType: typeBinary, body: backup}
}
