package deliver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/claviger/claviger/broker/agent/peercred"
)

// Socket says how to serve the local API.
type Socket struct {
	Path string
	Mode os.FileMode // 0: 0600
	GID  int         // -1: the agent's
	// UIDs that may ask, besides root and the agent's own.
	UIDs []int
}

type credKey struct{}

// Listen makes the socket. What an earlier run left is removed; anything else there is not ours.
func (s Socket) Listen() (net.Listener, error) {
	if info, err := os.Lstat(s.Path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket: %s is there already, and no socket", s.Path)
		}
		if err := os.Remove(s.Path); err != nil {
			return nil, fmt.Errorf("socket: %w", err)
		}
	}
	old := syscall.Umask(0o177) // never open to others, not even for a moment
	l, err := net.Listen("unix", s.Path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if s.GID > 0 {
		err = os.Chown(s.Path, -1, s.GID)
	}
	if err == nil && s.Mode != 0 {
		err = os.Chmod(s.Path, s.Mode)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

// Serve answers on the socket until ctx ends.
func (d *Delivery) Serve(ctx context.Context, l net.Listener, s Socket) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/secrets/{resource...}", d.serveSecret)
	mux.HandleFunc("GET /v1/status", d.serveStatus)
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) {
		if !d.ready() {
			http.Error(w, "not every secret is there yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{
		Handler: allowed(s.UIDs, mux), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, credKey{}, peercred.UID(c))
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func allowed(uids []int, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, _ := r.Context().Value(credKey{}).(int)
		if uid != 0 && uid != os.Geteuid() && !slices.Contains(uids, uid) {
			http.Error(w, "not for this user", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

const (
	defaultWait = 60 * time.Second
	maxWait     = 10 * time.Minute
)

// serveSecret answers with a value. A caller whose secret is not there yet, or
// that has this version already (?wait=VERSION), is held: never answered with nothing.
func (d *Delivery) serveSecret(w http.ResponseWriter, r *http.Request) {
	resource := r.PathValue("resource")
	if !slices.Contains(d.resources, resource) {
		http.Error(w, "this agent does not watch that", http.StatusNotFound)
		return
	}
	wait := defaultWait
	if t := r.URL.Query().Get("timeout"); t != "" {
		p, err := time.ParseDuration(t)
		if err != nil || p < 0 || p > maxWait {
			http.Error(w, "timeout: want a duration up to "+maxWait.String(), http.StatusBadRequest)
			return
		}
		wait = p
	}
	have, known := r.URL.Query().Get("wait"), r.URL.Query().Has("wait")
	deadline := time.After(wait)
	for {
		d.mu.Lock()
		// Only what is in place: files and socket never disagree.
		v, changed := d.inForce[resource], d.changed
		if v != nil && !(known && v.id == have) {
			w.Header().Set("ETag", `"`+strings.ReplaceAll(v.id, `"`, "")+`"`)
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("Content-Type", "application/octet-stream")
			if v.contentType != "" {
				w.Header().Set("Content-Type", v.contentType)
			}
			value := slices.Clone(v.value)
			d.mu.Unlock()
			_, _ = w.Write(value)
			clear(value)
			return
		}
		d.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-deadline:
			if v != nil && known {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			http.Error(w, "not there yet", http.StatusServiceUnavailable)
			return
		}
	}
}

// Status of one resource, without its value.
type Status struct {
	Resource  string    `json:"resource"`
	Version   string    `json:"version"` // newest received
	Delivered string    `json:"delivered"`
	Since     time.Time `json:"since,omitzero"`
}

func (d *Delivery) serveStatus(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	out := struct {
		Generation string   `json:"generation"`
		LastError  string   `json:"last_error,omitempty"`
		Resources  []Status `json:"resources"`
	}{Generation: d.current, LastError: d.lastError}
	for _, r := range d.resources {
		s := Status{Resource: r}
		if v := d.inForce[r]; v != nil {
			s.Delivered = v.id
		}
		if v := d.newest[r]; v != nil {
			s.Version, s.Since = v.id, v.since.UTC()
		}
		out.Resources = append(out.Resources, s)
	}
	d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func (d *Delivery) ready() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current != ""
}
