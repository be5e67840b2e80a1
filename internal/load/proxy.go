package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"time"
)

// proxy forwards to a Vault until ctx ends, and prints the most requests that it had at a time.
func proxy(ctx context.Context, o options) error {
	to, err := url.Parse(o.vault)
	if err != nil {
		return fmt.Errorf("--vault: %w", err)
	}
	var now, most, total atomic.Int64
	p := httputil.NewSingleHostReverseProxy(to)
	s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		total.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		p.ServeHTTP(w, r)
	})}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return err
	}
	fmt.Printf("Vault had %d requests, at most %d at a time\n", total.Load(), most.Load())
	return nil
}
