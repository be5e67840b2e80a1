package vault

import (
	"context"
	"errors"
	"fmt"
)

// answers is Health for the gate: where a proxy keeps sys/health from us, Vault is there.
func (s *Source) answers(ctx context.Context) error {
	err := s.Health(ctx)
	if code := status(err); code >= 400 && code < 500 {
		return nil
	}
	return err
}

// Health asks Vault whether it is there and unsealed. A standby is: it forwards.
func (s *Source) Health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	h, err := s.client.Sys().HealthWithContext(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("vault %s: %w", s.cfg.Address, err)
	case !h.Initialized:
		return fmt.Errorf("vault %s: %w", s.cfg.Address, errors.New("not initialised"))
	case h.Sealed:
		return fmt.Errorf("vault %s: %w", s.cfg.Address, errors.New("sealed"))
	}
	return nil
}
