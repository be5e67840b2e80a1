package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// TestHintsAreOnlyHints: an audit socket that cannot be bound is reported and tried again; it ends nothing.
func TestHintsAreOnlyHints(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var said strings.Builder
	tries := 0
	err := keepHinting(ctx, slog.New(slog.NewTextHandler(&said, nil)), 0, func(ctx context.Context) error {
		if tries++; tries == 3 {
			cancel()
			return ctx.Err()
		}
		return errors.New("bind: permission denied")
	})
	if !errors.Is(err, context.Canceled) || tries != 3 || strings.Count(said.String(), "permission denied") != 2 {
		t.Errorf("%d tries, %v, log %s", tries, err, said.String())
	}
}
