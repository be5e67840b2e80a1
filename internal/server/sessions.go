package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/claviger/claviger/broker"
)

// sessions implements rpc.Sessions.
type sessions struct{ *Server }

func (s sessions) Sessions(ctx context.Context) ([]broker.Session, error) {
	return s.state.Sessions(ctx)
}

func (s sessions) Current(e broker.CatalogEntry) string { return s.feed.Current(e) }

func (s sessions) Notify(ctx context.Context, e broker.CatalogEntry) error {
	return s.feed.Notify(ctx, e)
}

func (s sessions) Rotate(ctx context.Context, e broker.CatalogEntry) (string, error) {
	src, ok := s.sources[e.Source].(broker.Rotator)
	if !ok {
		return "", broker.ErrNotRotatable
	}
	return src.Rotate(ctx, e)
}

func (s sessions) Lookup(path string) (broker.CatalogEntry, bool) {
	e, _, ok := s.broker.Catalog().Lookup(path)
	return e, ok
}

func (s sessions) Exposed(ctx context.Context, subject broker.Subject, since time.Time) (broker.Exposure, error) {
	x := broker.Exposure{Log: s.audit.Origin()}
	if err := s.audit.Settle(ctx); err != nil { // a release of a moment ago counts
		return x, err
	}
	if _, err := s.audit.Size(ctx); errors.Is(err, os.ErrNotExist) {
		return x, nil
	}
	for e, err := range s.audit.Entries(ctx, 0) {
		if err != nil {
			return x, err
		}
		var r broker.Record
		if err := json.Unmarshal(e.Data, &r); err != nil {
			return x, fmt.Errorf("audit entry %d: %w", e.Index, err)
		}
		x.Add(r, subject, since)
	}
	return x, nil
}
