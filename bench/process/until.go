package process

import (
	"context"
	"fmt"
	"time"
)

// Until tries until f says nil, for at most 90 s.
func Until(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w; the last answer: %w", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}
