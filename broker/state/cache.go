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

const copies = "copies/"

// sealedCopy is how a copy is stored: when to forget it, and the rest sealed.
type sealedCopy struct {
	Until time.Time `json:"until"`
	Box   []byte    `json:"box"`
}

type openCopy struct {
	Value       []byte    `json:"value"`
	Version     string    `json:"version"`
	ContentType string    `json:"content_type,omitempty"`
	At          time.Time `json:"at"`
}

func copyKey(key string) string { return copies + base64.RawURLEncoding.EncodeToString([]byte(key)) }

// PutCopy implements broker.Cache.
func (s *State) PutCopy(ctx context.Context, key string, c broker.Copy) error {
	plain, err := json.Marshal(openCopy{c.Value, c.Version, c.ContentType, c.At})
	if err != nil {
		return errors.New("encode copy")
	}
	defer clear(plain)
	return s.putJSON(ctx, copyKey(key), sealedCopy{c.Until, s.Seal(copyKey(key), plain)})
}

// GetCopy implements broker.Cache.
func (s *State) GetCopy(ctx context.Context, key string) (broker.Copy, error) {
	sealed, _, err := getJSON[sealedCopy](ctx, s.kv, copyKey(key))
	if err != nil {
		return broker.Copy{}, err
	}
	plain, err := s.Open(copyKey(key), sealed.Box)
	if err != nil {
		return broker.Copy{}, err
	}
	defer clear(plain)
	var o openCopy
	if err := json.Unmarshal(plain, &o); err != nil {
		return broker.Copy{}, errors.New("decode copy: not one")
	}
	return broker.Copy{Value: o.Value, Version: o.Version, ContentType: o.ContentType, At: o.At, Until: sealed.Until}, nil
}

// DeleteCopy implements broker.Cache.
func (s *State) DeleteCopy(ctx context.Context, key string) error {
	_, err := s.kv.Delete(ctx, copyKey(key))
	return err
}

func (s *State) sweepCopies(ctx context.Context) error {
	return s.each(ctx, copies, func(p Pair) error {
		var c sealedCopy
		if err := json.Unmarshal(p.Value, &c); err == nil && s.now().Before(c.Until) {
			return nil
		}
		if _, err := s.kv.Delete(ctx, p.Key); err != nil {
			return fmt.Errorf("delete %s: %w", p.Key, err)
		}
		return nil
	})
}
