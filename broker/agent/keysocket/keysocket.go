// Package keysocket hands keys to systemd over an AF_UNIX socket: to
// systemd-cryptsetup, whose crypttab names the socket as key file, and to
// services with LoadCredential=. Which key is wanted stands in the abstract
// name that the caller binds its own socket to (systemd.exec(5), crypttab(5)).
//
// A caller is held until its key is there. Closing without data would start a
// service with an empty credential, and nobody would notice.
package keysocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claviger/claviger/broker/agent/peercred"
)

// Ask is what a caller wants: the key of a volume, or a credential of a unit.
type Ask struct {
	Volume     string
	Unit       string
	Credential string
}

func (a Ask) String() string {
	if a.Volume != "" {
		return "volume " + a.Volume
	}
	return "credential " + a.Credential + " of " + a.Unit
}

// ParseName reads the caller's name: "@RANDOM/cryptsetup/VOLUME" or
// "@RANDOM/unit/UNIT/CREDENTIAL". It is a claim: any process can bind such a name.
func ParseName(name string) (Ask, error) {
	f := strings.Split(name, "/")
	switch {
	case strings.HasPrefix(name, "@") && len(f) == 3 && f[1] == "cryptsetup" && f[2] != "":
		return Ask{Volume: f[2]}, nil
	case strings.HasPrefix(name, "@") && len(f) == 4 && f[1] == "unit" && f[2] != "" && f[3] != "":
		return Ask{Unit: f[2], Credential: f[3]}, nil
	}
	return Ask{}, fmt.Errorf("caller %q is neither systemd-cryptsetup nor a unit's LoadCredential=", name)
}

// ErrPassphrase: the caller gets no data, so that systemd-cryptsetup asks a person.
var ErrPassphrase = errors.New("no key: a passphrase has to be typed")

// Server answers callers.
type Server struct {
	// Key returns a key, the server's to wipe. Its error means: not now, or never; the caller is held in both
	// cases, and asked for again after Retry, since an operator may mend what was wrong. Only ErrPassphrase ends the call.
	Key   func(ctx context.Context, a Ask) ([]byte, error)
	Retry time.Duration // default 30 s
	// Max bounds the callers held at once. Default 64.
	Max  int
	Logf func(format string, args ...any)
}

// Serve answers until ctx ends. Callers still held then are cut off by the end of the process.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.Retry == 0 {
		s.Retry = 30 * time.Second
	}
	if s.Max == 0 {
		s.Max = 64
	}
	places := make(chan struct{}, s.Max)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		select {
		case places <- struct{}{}: // beyond Max callers wait in the socket's backlog
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer func() { <-places }()
			s.answer(ctx, c)
		}()
	}
}

// answer holds the caller until it has its key. The connection is left open if
// there is none: only the end of the process, or of the caller, ends it.
func (s *Server) answer(ctx context.Context, c net.Conn) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return
	}
	if uid := peercred.UID(u); uid != 0 && uid != os.Geteuid() {
		s.logf("refused a caller of user %d", uid)
		c.Close() // not systemd, so nothing takes the silence for a key
		return
	}
	ask, err := ParseName(c.RemoteAddr().String())
	for said := ""; ; {
		if err == nil {
			var key []byte
			if key, err = s.Key(ctx, ask); err == nil && len(key) > 0 {
				s.send(u, ask, key)
				return
			}
			if errors.Is(err, ErrPassphrase) {
				s.logf("%s: %v", ask, err)
				c.Close()
				return
			}
			if err == nil {
				err = errors.New("the key is empty")
			}
		}
		if text := err.Error(); text != said {
			s.logf("%s is held: %v", ask, err)
			said = text
		}
		if s.wait(ctx, u) != nil {
			return
		}
		ask, err = ParseName(c.RemoteAddr().String())
	}
}

func (s *Server) send(c *net.UnixConn, ask Ask, key []byte) {
	defer clear(key)
	_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(key); err != nil {
		s.logf("%s: %v", ask, err)
	}
	c.Close()
}

// wait waits for the next try. It ends early if the caller has gone, which its
// end of file does not say: systemd shuts down its sending side at once.
func (s *Server) wait(ctx context.Context, c *net.UnixConn) error {
	until := time.Now().Add(s.Retry)
	for time.Now().Before(until) {
		if gone(c) {
			c.Close()
			return net.ErrClosed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(time.Second, time.Until(until))):
		}
	}
	return nil
}

func gone(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	hup := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		hup = err == nil && n == 1 && p[0].Revents&unix.POLLHUP != 0
	})
	return hup || err != nil
}

func (s *Server) logf(format string, args ...any) {
	if s.Logf != nil {
		s.Logf(format, args...)
	}
}

// Inherited is the socket that systemd passes to a socket-activated service (sd_listen_fds(3)), or nil.
func Inherited() (net.Listener, error) {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return nil, nil
	}
	if n := os.Getenv("LISTEN_FDS"); n != "1" {
		return nil, fmt.Errorf("systemd passed %s sockets, want one", n)
	}
	f := os.NewFile(3, "systemd socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("socket from systemd: %w", err)
	}
	return l, nil
}
