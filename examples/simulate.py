from neds_hf.cli.main import run

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(run("simulate"))
