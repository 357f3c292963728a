package chaos

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// The password of the database's user, who owns its database.
const password = "correct horse battery staple"

// postgres is a primary and its synchronous standby, which change places when the primary fails.
type postgres struct {
	w       *world
	as      *syscall.Credential
	ca      *softhsmtest.CA
	slow    string // the library that makes a disk slow
	servers [2]*server

	mu      sync.Mutex
	primary *server
}

// server is a server of PostgreSQL on a host of its own.
type server struct {
	*host
	p       *postgres
	dir     string // with data, socket and certificate
	process *process
}

// startPostgres starts both.
func (w *world) startPostgres(hosts [2]*host) *postgres {
	w.t.Helper()
	if softhsmtest.PostgresPrograms() == "" {
		softhsmtest.Missing(w.t, "postgresql")
	}
	p := &postgres{w: w, as: unprivileged(w), ca: softhsmtest.NewCA(w.t, "databases", nil),
		slow: w.compile("slowdisk.c", "slowdisk.so")}
	for i, h := range hosts {
		s := &server{host: h, p: p, dir: filepath.Join(w.dir, h.name)}
		p.servers[i] = s
		w.must(os.MkdirAll(s.dir, 0o700))
		template := softhsmtest.Template(h.name)
		template.IPAddresses, template.ExtKeyUsage = []net.IP{net.ParseIP(h.address)}, nil
		chain, key := w.pair(p.ca, template)
		w.must(os.WriteFile(filepath.Join(s.dir, "tls.pem"), []byte(chain), 0o600))
		w.must(os.WriteFile(filepath.Join(s.dir, "tls.key"), []byte(key), 0o600))
		for _, name := range []string{"", "tls.pem", "tls.key"} {
			w.must(os.Chown(filepath.Join(s.dir, name), int(p.as.Uid), int(p.as.Gid)))
		}
	}
	first, second := p.servers[0], p.servers[1]
	p.primary = first
	first.must("initdb", "-D", first.data(), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale", "C")
	first.configure()
	first.start()
	first.sql("create role broker login password '" + password + "'")
	first.sql("create role replication login replication password '" + password + "'")
	first.sql("create database broker owner broker")
	second.follow(first)
	return p
}

// unprivileged returns a user whom PostgreSQL runs as: it refuses to as root.
func unprivileged(w *world) *syscall.Credential {
	w.t.Helper()
	u, err := user.Lookup(softhsmtest.Unprivileged)
	w.must(err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	w.must(err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	w.must(err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// program returns the path of one of PostgreSQL's programs.
func program(name string) string { return filepath.Join(softhsmtest.PostgresPrograms(), name) }

func (s *server) data() string { return filepath.Join(s.dir, "data") }

// must runs one of PostgreSQL's programs on the server's host.
func (s *server) must(name string, args ...string) string {
	s.p.w.t.Helper()
	output, err := s.run(s.p.as, []string{"HOME=" + s.dir}, program(name), args...)
	s.p.w.must(err)
	return output
}

// try runs a statement as the superuser, and returns what it prints.
func (s *server) try(statement string) (output string, err error) {
	for _, database := range []string{"broker", "postgres"} { // the first is made by such a statement
		output, err = s.run(s.p.as, []string{"HOME=" + s.dir, "PGCONNECT_TIMEOUT=5"}, program("psql"), "-h", s.dir, "-U",
			"postgres", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement, database)
		if err == nil || !strings.Contains(output, `database "broker" does not exist`) {
			break
		}
	}
	return strings.TrimSpace(output), err
}

func (s *server) sql(statement string) string {
	s.p.w.t.Helper()
	output, err := s.try(statement)
	s.p.w.must(err)
	return output
}

// configure writes the configuration into the data's folder.
func (s *server) configure() {
	s.p.w.t.Helper()
	s.write("postgresql.auto.conf", "")
	s.write("chaos.conf", fmt.Sprintf(`listen_addresses = '%[1]s'
unix_socket_directories = '%[2]s'
ssl = on
ssl_cert_file = '%[2]s/tls.pem'
ssl_key_file = '%[2]s/tls.key'
max_connections = 120
dynamic_shared_memory_type = mmap
shared_buffers = 32MB
wal_keep_size = 512MB
wal_sender_timeout = 4s
wal_receiver_timeout = 4s
wal_retrieve_retry_interval = 500ms
tcp_keepalives_idle = 2
tcp_keepalives_interval = 1
tcp_keepalives_count = 3
tcp_user_timeout = 4000
log_line_prefix = '%%m [%%p] %%u '
log_min_error_statement = fatal
include = 'sync.conf'
`, s.address, s.dir))
	s.write("sync.conf", "")
	s.write("pg_hba.conf", `local all all trust
hostssl all all 192.0.2.0/24 scram-sha-256
hostssl replication all 192.0.2.0/24 scram-sha-256
`)
	conf := filepath.Join(s.data(), "postgresql.conf")
	text, err := os.ReadFile(conf)
	s.p.w.must(err)
	if !strings.Contains(string(text), "chaos.conf") {
		s.write("postgresql.conf", string(text)+"\ninclude = 'chaos.conf'\n")
	}
}

func (s *server) write(name, text string) {
	s.p.w.t.Helper()
	path := filepath.Join(s.data(), name)
	s.p.w.must(os.WriteFile(path, []byte(text), 0o600))
	s.p.w.must(os.Chown(path, int(s.p.as.Uid), int(s.p.as.Gid)))
}

// start starts the server, and waits until it answers.
func (s *server) start() {
	s.p.w.t.Helper()
	s.process = s.p.w.start(s.host, s.p.as, []string{"HOME=" + s.dir, "LD_PRELOAD=" + s.p.slow,
		"DISK_SLOW=" + filepath.Join(s.dir, "slow"), "DISK_SLOW_MS=200"}, s.name+".log", program("postgres"), "-D", s.data())
	s.process.last = syscall.SIGQUIT // else, it leaves shared memory behind
	s.p.w.until(s.name+" answers", func() bool {
		if !s.process.runs() {
			s.p.w.t.Fatalf("%s ended", s.name)
		}
		_, err := s.try("select 1")
		return err == nil
	})
}

// stop ends the server: by SIGINT, which ends sessions in order, or SIGQUIT, after which it has to recover.
func (s *server) stop(how syscall.Signal) {
	s.process.signal(how)
	<-s.process.ended
}

// follow makes the server anew, as a synchronous standby of another one.
func (s *server) follow(primary *server) {
	s.p.w.t.Helper()
	if s.process != nil {
		s.stop(syscall.SIGQUIT)
	}
	s.p.w.must(os.RemoveAll(s.data()))
	from := fmt.Sprintf("host=%s user=replication password='%s' sslmode=require application_name=%s", primary.address,
		password, s.name)
	s.must("pg_basebackup", "-D", s.data(), "-d", from, "-X", "stream", "-c", "fast", "--no-sync")
	s.configure()
	s.write("postgresql.auto.conf", "primary_conninfo = '"+strings.ReplaceAll(from, "'", "''")+"'\n")
	s.write("standby.signal", "")
	s.start()
	primary.write("sync.conf", "synchronous_standby_names = '*'\n")
	primary.sql("select pg_reload_conf()")
	s.p.w.until(s.name+" is in sync", s.p.redundant)
}

// redundant reports whether the standby has all that the primary has committed.
func (p *postgres) redundant() bool {
	state, err := p.now().try("select sync_state from pg_stat_replication")
	return err == nil && state == "sync"
}

// now returns the primary.
func (p *postgres) now() *server {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.primary
}

func (p *postgres) standby() *server {
	if p.now() == p.servers[0] {
		return p.servers[1]
	}
	return p.servers[0]
}

// restart ends the primary and starts it again.
func (p *postgres) restart(how syscall.Signal) {
	s := p.now()
	s.stop(how)
	s.start()
}

// failover cuts the primary off from everyone and kills it, and promotes its standby. It does nothing and returns false
// if the standby lacks anything.
func (p *postgres) failover() bool {
	if !p.redundant() {
		return false
	}
	old, next := p.now(), p.standby()
	for _, h := range p.w.net.hosts {
		if h != old.host {
			p.w.net.cut(old.host, h)
		}
	}
	old.stop(syscall.SIGQUIT) // at once, without writing anything more
	next.write("sync.conf", "")
	next.must("pg_ctl", "promote", "-D", next.data())
	p.mu.Lock()
	p.primary = next
	p.mu.Unlock()
	return true
}

// rebuild makes the old primary the standby of the new one.
func (p *postgres) rebuild() {
	p.w.t.Helper()
	old := p.standby()
	for _, h := range p.w.net.hosts {
		if h != old.host {
			p.w.net.heal(old.host, h)
		}
	}
	old.process = nil
	old.follow(p.now())
}

// slowDisk has each write of both servers to their disks take longer, until the function that it returns is called.
func (p *postgres) slowDisk() (end func()) {
	for _, s := range p.servers {
		if err := os.WriteFile(filepath.Join(s.dir, "slow"), nil, 0o644); err != nil {
			p.w.t.Error(err)
		}
	}
	return func() {
		for _, s := range p.servers {
			if err := os.Remove(filepath.Join(s.dir, "slow")); err != nil && !errors.Is(err, os.ErrNotExist) {
				p.w.t.Error(err)
			}
		}
	}
}

// url returns the URL of the database, whichever server is the primary.
func (p *postgres) url() string {
	return fmt.Sprintf("postgres://broker@%s,%s/broker?sslmode=verify-full&sslrootcert=%s"+
		"&target_session_attrs=read-write", p.servers[0].address, p.servers[1].address, filepath.Join(p.w.dir, "db-ca.pem"))
}
