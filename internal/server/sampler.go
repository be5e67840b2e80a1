package server

import (
	"time"

	"golang.org/x/time/rate"
)

// sampler lets a few through per period.
type sampler struct{ limit *rate.Limiter }

func newSampler(n int, per time.Duration) *sampler {
	return &sampler{rate.NewLimiter(rate.Every(per/time.Duration(n)), n)}
}

func (s *sampler) allow() bool { return s.limit.Allow() }
