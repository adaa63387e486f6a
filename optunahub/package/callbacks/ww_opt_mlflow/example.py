"""Five trials, logged to mlflow.db in the current folder; some seconds, most of them to make the database."""

import optuna
import optunahub

module = optunahub.load_module(package="callbacks/ww_opt_mlflow")


def objective(trial: optuna.Trial) -> float:
    """Any objective will do; records of ww_opt become curves and tables beside the value."""
    x = trial.suggest_float("x", -5.0, 5.0)
    for step in range(3):
        trial.report((x - 1.0) ** 2 / (step + 1), step)
    return (x - 1.0) ** 2


if __name__ == "__main__":
    callback = module.MLflowCallback("sqlite:///mlflow.db", experiment="example")
    study = optuna.create_study()
    study.optimize(objective, n_trials=5, callbacks=[callback])
    print("not written:", callback.finish(study))
