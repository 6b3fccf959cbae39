// node-agent is the smallest program that behaves like an agent on a node: it says over HTTP which
// version it is and whether it is well, and it ends when it is told to.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Set when it is built: go build -ldflags "-X main.version=1.0.0".
var (
	version = "0.0.0"
	// What is wrong with this version, if anything: the demo builds a broken one with it.
	flaw = ""
)

func main() {
	log.SetFlags(0)
	if flaw != "" {
		log.Fatalf("node-agent %s: %s", version, flaw)
	}
	http.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "node-agent %s on %s\n", version, os.Getenv("NODE_NAME"))
	})
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: 5 * time.Second}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = server.Shutdown(limit)
	}()
	log.Printf("node-agent %s listens on %s", version, server.Addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
