package state

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/broker"
)

const (
	keyRecords  = "keys/"         // which keys there were
	missingKeys = "missing-keys/" // those that are not there any more: few, and listed often
)

func keyName(r broker.KeyRecord) string {
	return base64.RawURLEncoding.EncodeToString([]byte(r.ID()))
}

// GetKey implements broker.KeyBook.
func (s *State) GetKey(ctx context.Context, name broker.KeyRecord) (broker.KeyRecord, error) {
	r, _, err := getJSON[broker.KeyRecord](ctx, s.kv, keyRecords+keyName(name))
	return r, err
}

// PutKey implements broker.KeyBook.
func (s *State) PutKey(ctx context.Context, r broker.KeyRecord) error {
	key := keyRecords + keyName(r)
	for range 10 {
		before, rev, err := getJSON[broker.KeyRecord](ctx, s.kv, key)
		if err != nil && !errors.Is(err, broker.ErrNoSecret) {
			return err
		}
		r.Version = max(r.Version, before.Version)
		won, err := s.putKeyIf(ctx, r, rev)
		if won || err != nil {
			return err
		}
	}
	return fmt.Errorf("record of key %s: %w", r.Key, ErrConflict)
}

// ForgetKey implements broker.KeyBook. The record stays: without one, what else brokers know would count.
func (s *State) ForgetKey(ctx context.Context, name broker.KeyRecord) error {
	name.Version, name.Missing = 0, time.Time{}
	b, err := json.Marshal(name)
	if err != nil {
		return fmt.Errorf("encode record of a key: %w", err)
	}
	if err := s.kv.Put(ctx, keyRecords+keyName(name), b); err != nil {
		return err
	}
	_, err = s.kv.Delete(ctx, missingKeys+keyName(name))
	return err
}

func (s *State) putKeyIf(ctx context.Context, r broker.KeyRecord, rev int64) (bool, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return false, fmt.Errorf("encode record of a key: %w", err)
	}
	won, err := s.kv.PutIf(ctx, keyRecords+keyName(r), b, rev)
	if err != nil || !won {
		return false, err
	}
	if r.Missing.IsZero() {
		_, err = s.kv.Delete(ctx, missingKeys+keyName(r))
		return true, err
	}
	return true, s.kv.Put(ctx, missingKeys+keyName(r), b)
}

// MissingKeys implements broker.KeyBook.
func (s *State) MissingKeys(ctx context.Context) ([]broker.KeyRecord, error) {
	return listJSON[broker.KeyRecord](ctx, s, missingKeys)
}
