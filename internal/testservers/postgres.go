package testservers

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Postgres is a running PostgreSQL server with database "app".
type Postgres struct {
	Address  string // host:port
	User     string // a superuser
	Password string
	psql     string
}

// StartPostgres starts the PostgreSQL on PATH, else the newest in Debian's place for it.
func StartPostgres(t testing.TB) *Postgres {
	t.Helper()
	skipShort(t, "PostgreSQL")
	initdb, server, psql := postgresBinary(t, "initdb"), postgresBinary(t, "postgres"), postgresBinary(t, "psql")
	// Not t.TempDir: the server may run as another user, who cannot get there.
	dir, err := os.MkdirTemp("/tmp", "claviger-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var uid, gid int
	if os.Geteuid() == 0 { // it refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("PostgreSQL does not run as root, and there is no user postgres: %v", err)
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if uid != 0 {
			runAs(cmd, uint32(uid), uint32(gid))
		}
		return cmd
	}
	p := &Postgres{User: "claviger", Password: "postgres-test-password", psql: psql}
	pwfile := filepath.Join(dir, "password")
	if err := os.WriteFile(pwfile, []byte(p.Password), 0o644); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if out, err := command(initdb, "-D", data, "-U", p.User, "--pwfile", pwfile, "-A", "scram-sha-256", "-N", "--no-locale", "-E", "UTF8").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	p.Address = freeAddr(t)
	host, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(server, "-D", data, "-h", host, "-p", port, "-k", dir, "-c", "fsync=off", "-c", "log_min_messages=fatal")
	start(t, cmd)
	t.Cleanup(func() { // at once, but so that it gives back its shared memory
		signal(t, cmd, syscall.SIGQUIT)
		for range 100 {
			if !exists(filepath.Join(data, "postmaster.pid")) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	waitFor(t, "postgres", func() error {
		_, err := p.query("postgres", "SELECT 1")
		return err
	})
	if _, err := p.query("postgres", "CREATE DATABASE app"); err != nil {
		t.Fatal(err)
	}
	return p
}

// Query runs SQL in database "app" and returns the rows, one a line, columns separated by "|".
func (p *Postgres) Query(t testing.TB, sql string) string {
	t.Helper()
	out, err := p.query("app", sql)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Login says whether the user can log in.
func (p *Postgres) Login(user, password string) error {
	other := *p
	other.User, other.Password = user, password
	_, err := other.query("app", "SELECT 1")
	return err
}

func (p *Postgres) query(db, sql string) (string, error) {
	host, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(p.psql, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", port, "-U", p.User, "-d", db, "-c", sql)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+p.Password, "PGCONNECT_TIMEOUT=5")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func postgresBinary(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		t.Fatalf("no %s on PATH nor in /usr/lib/postgresql/*/bin: `apt-get install postgresql`, or `make test-short`", name)
	}
	slices.Sort(found)
	return found[len(found)-1]
}
