package main

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// network gives the machine an address if the settings have one and it has none,
// and makes a resolver for its name servers, or nil for the system's.
func (s *settings) network(ctx context.Context) (*net.Resolver, error) {
	if err := s.Network.Validate(); err != nil {
		return nil, fmt.Errorf("%w: network: %w", errUsage, err)
	}
	timeout, err := time.ParseDuration(s.Timeout)
	if err != nil || timeout <= 0 {
		return nil, fmt.Errorf("%w: timeout: %q is not a duration like 90s", errUsage, s.Timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.Network.Up(ctx); err != nil {
		return nil, err
	}
	servers := s.Network.DNS
	if len(servers) == 0 {
		return nil, nil
	}
	var n atomic.Uint32 // the next one if a server does not answer
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		server := servers[int(n.Add(1)-1)%len(servers)]
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}, nil
}

// built is the time of the commit that this program was built from: a clock before it is wrong.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				return t
			}
		}
	}
	return time.Time{}
}
